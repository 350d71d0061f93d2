/* SPDX-License-Identifier: MIT
 * backend/backend.h - one kind of device behind one table of functions.
 *
 * Read this first in this room. A backend never learns what a UNet or an adapter file is: it gets
 * planned graphs (graph/graph.h), layers and deltas (graph/layer.h). Life of a run:
 *
 *   driver.open -> weights_create -> plan_create (once per graph) -> plan_run (every step)
 *
 * Plans made with the same weights share one compute buffer, as large as the largest needs: they
 * run one at a time, and nothing but bindings and weights lasts from one run to the next.
 *
 * weights_create holds what stays on the device as long as a set of adapters does: uploaded base
 * weights and factors, merged weights. plan_create chooses kernels, library algorithms and
 * scratch; plan_run neither chooses nor asks, and allocates nothing but the compute buffer if no
 * run before needed one as large. Strengths are arguments of plan_run. */
#ifndef BACKEND_BACKEND_H
#define BACKEND_BACKEND_H
#include "graph/graph.h"

struct be_device;
struct be_weights;
struct be_plan;

/* Memory of a device. The backend's own part follows it. */
struct be_buf {
    struct be_device *device;
    size_t bytes;
    void *host; /* the memory itself where the host can address it, else NULL */
};

struct be_caps {
    int n_threads;          /* workers of a CPU device; 0 elsewhere */
    size_t memory_total;    /* bytes; 0: unknown */
    size_t memory_free;     /* bytes when the device was opened; 0: unknown */
    struct gr_rates rates;  /* for the choice of routes; after be_measure() */
    bool observes;          /* calls be_device.observe */
    int int8_bits;          /* obeys gr_op.compute, with numbers of so many; 0: all is f32 */
};

/* Told of each operation of a run when it is done: start and end by clock_seconds(). */
struct be_timer {
    void (*done)(void *user, const struct graph *g, const struct gr_op *op, double start,
                 double end);
    void *user;
};

/* What a device reaches at best, of multiply-adds (two each) and of bytes a second. */
struct be_peak {
    double flops, bytes;
};

struct be_fns {
    void (*close)(struct be_device *d); /* all its buffers, weights and plans are gone */
    /* Fills caps.rates. NULL: they are there from the start. */
    kron_status (*measure)(struct be_device *d);

    kron_status (*buf_alloc)(struct be_device *d, size_t bytes, struct be_buf **out);
    void (*buf_free)(struct be_buf *b);
    /* In order with plan_run. write: `src` is free on return; read: waits. */
    kron_status (*buf_write)(struct be_buf *b, size_t at, const void *src, size_t n);
    kron_status (*buf_read)(struct be_buf *b, size_t at, void *dst, size_t n);

    /* True if `op` runs here with these shapes. Pure. */
    bool (*op_supported)(const struct be_device *d, const struct graph *g, const struct gr_op *op);

    /* What stays resident for the layers of `table` with the deltas of `set` (NULL: none).
     * Plans that share it run one at a time.
     * The caller keeps table and set alive as long as the result. */
    kron_status (*weights_create)(struct be_device *d, const struct layer_table *table,
                                  const struct delta_set *set, struct be_weights **out);
    void (*weights_free)(struct be_weights *w);
    /* Gives the compute buffer back until the next run. */
    void (*weights_trim)(struct be_weights *w);

    /* Compiles a planned graph, routes chosen. The graph must outlive the plan. Layers of merged
     * route get their merged weight here, for the strengths given; it is kept in `w` and made
     * once for all plans. strengths may be NULL where no route is merged. */
    kron_status (*plan_create)(struct be_device *d, const struct graph *g, struct be_weights *w,
                               const float *strengths, struct be_plan **out);
    /* bind[i] is input or output i of the graph. strengths: set->n_strengths numbers. timer: NULL
     * if nobody asks, which costs a branch for each operation. */
    kron_status (*plan_run)(struct be_plan *p, struct be_buf *const *bind, const float *strengths,
                            const struct be_timer *timer);
    void (*plan_free)(struct be_plan *p);
    /* The compute buffer: arena and all scratch, bytes. */
    size_t (*plan_bytes)(const struct be_plan *p);

    /* Measures a product of f32 matrices that fits no small cache and a copy that fits none, all
     * workers taking part. NULL: not worth knowing. */
    kron_status (*measure_peak)(struct be_device *d, struct be_peak *out);
};

struct be_device {
    const struct be_fns *fns;
    char name[16];       /* "cpu", "cuda0": unique in the process */
    struct be_caps caps;
    /* Shown the input x[rows, layer->in] of each linear operation before it runs; NULL: nobody
     * looks. Set before any plan runs; called by the threads that run plans. */
    void (*observe)(void *user, const struct layer *l, const float *x, int64_t rows);
    void *observe_user;
};

struct be_driver {
    const char *name;
    int (*count)(void); /* devices present; 0 if the driver is absent */
    /* n_threads: workers of a CPU device, 0 = one per core. */
    kron_status (*open)(int index, int n_threads, struct be_device **out);
};

extern const struct be_driver be_ref, be_cpu;

/* --- front (backend.c): checks arguments once, then calls the table --- */

/* The list of drivers that this build has, best first; NULL at its end. */
extern const struct be_driver *const be_drivers[];
/* Opens a device by name: "cpu", "ref"; NULL or "" for the best. */
kron_status be_open(const char *name, int n_threads, struct be_device **out);
void be_close(struct be_device **d);
/* Sees to it that caps.rates are known: measured when first asked for, since it takes a twentieth
 * of a second that a run without adapters need not wait. From any thread. */
kron_status be_measure(struct be_device *d);
kron_status be_buf_alloc(struct be_device *d, size_t bytes, struct be_buf **out);
void be_buf_free(struct be_buf **b);
kron_status be_buf_write(struct be_buf *b, size_t at, const void *src, size_t n);
kron_status be_buf_read(struct be_buf *b, size_t at, void *dst, size_t n);
kron_status be_weights_create(struct be_device *d, const struct layer_table *table,
                              const struct delta_set *set, struct be_weights **out);
void be_weights_free(struct be_device *d, struct be_weights **w);
void be_weights_trim(struct be_device *d, struct be_weights *w);
/* Also checks that every operation is supported and names the first that is not. */
kron_status be_plan_create(struct be_device *d, const struct graph *g, struct be_weights *w,
                           const float *strengths, struct be_plan **out);
kron_status be_plan_run(struct be_device *d, struct be_plan *p, struct be_buf *const *bind,
                        const float *strengths);
kron_status be_plan_run_timed(struct be_device *d, struct be_plan *p, struct be_buf *const *bind,
                              const float *strengths, const struct be_timer *timer);
void be_plan_free(struct be_device *d, struct be_plan **p);
size_t be_plan_bytes(struct be_device *d, const struct be_plan *p);
/* KRON_ERR_UNSUPPORTED for devices that are only there to define what is right. */
kron_status be_measure_peak(struct be_device *d, struct be_peak *out);

#endif
