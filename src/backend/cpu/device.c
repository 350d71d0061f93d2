/* SPDX-License-Identifier: MIT
 * Opening the host as a device, its buffers, and how fast it is. */
#define _DEFAULT_SOURCE /* sysconf names of memory */
#include "backend/cpu/cpu.h"
#include "backend/cpu/int8.h"
#include "backend/cpu/peak.h"
#include "backend/cpu/places.h"
#include "backend/cpu/plan.h"
#include "backend/host.h"
#include <omp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void close_device(struct be_device *d)
{
    places_free(&((struct cpu_device *)d)->places);
    mem_free(d);
}

static int count(void)
{
    return 1;
}

/* Best of a few short products, so that a busy moment does not mislead. */
static double product_rate(int64_t m, int64_t n, int64_t k, float *mem)
{
    float *a = mem, *b = a + m * k, *c = b + n * k;
    double best = 0;

    for (int i = 0; i < 4; i++) {
        double t0 = clock_seconds();
        onednn_gemm(true, m, n, k, 1, a, k, b, k, 0, c, n);
        double t = clock_seconds() - t0, rate = (double)(m * n * k) / (t > 1e-9 ? t : 1e-9);
        best = rate > best ? rate : best;
    }
    return best;
}

/* A pass decodes and adds in cache on every thread. */
static double pass_rate(const struct cpu_kernels *k, float *mem, int threads)
{
    enum { N = 4096, TIMES = 400 };
    double best = 0;

    for (int i = 0; i < 3; i++) {
        double t0 = clock_seconds();
        for (int j = 0; j < TIMES; j++)
            k->axpy(mem, mem + N, 0.5f, N);
        double t = clock_seconds() - t0, rate = (double)N * TIMES / (t > 1e-9 ? t : 1e-9);
        best = rate > best ? rate : best;
    }
    return best * threads;
}

static double bandwidth(char *mem, size_t bytes)
{
    double best = 0;

    for (int i = 0; i < 2; i++) {
        double t0 = clock_seconds();
        memcpy(mem, mem + bytes / 2, bytes / 2);
        double t = clock_seconds() - t0, rate = (double)bytes / (t > 1e-9 ? t : 1e-9);
        best = rate > best ? rate : best;
    }
    return best;
}

static kron_status measure(struct be_device *base)
{
    const struct cpu_device *d = (struct cpu_device *)base;
    const size_t bytes = 32 << 20;
    int before = omp_get_max_threads();
    void *mem;

    KRON_TRY(mem_alloc(&mem, bytes, "measuring the processor"));
    memset(mem, 1, bytes); /* touched: untouched pages would flatter reading */
    omp_set_num_threads(d->n_threads);
    base->caps.rates = (struct gr_rates){
        .product = product_rate(512, 320, 640, mem),
        .small = product_rate(512, 16, 640, mem),
        .pass = pass_rate(d->k, mem, d->n_threads),
        .bandwidth = bandwidth(mem, bytes),
    };
    omp_set_num_threads(before);
    mem_free(mem);
    log_debug("cpu: %d threads, %s kernels (%s for int8), %.1f + %.1f GFLOP/s (large, small "
              "products), %.1f G/s weight pass, %.1f GB/s", d->n_threads, d->k->name, d->int8->name,
              2e-9 * base->caps.rates.product, 2e-9 * base->caps.rates.small,
              1e-9 * base->caps.rates.pass, 1e-9 * base->caps.rates.bandwidth);
    return KRON_OK;
}

/* What programs may still take: on Linux that counts the cache of files, of which a mapped
 * checkpoint is most, and which the system gives back when asked. */
static size_t memory_available(size_t page)
{
    unsigned long long kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "r");

    while (f != NULL && kib == 0 && fgets(line, sizeof line, f) != NULL)
        sscanf(line, "MemAvailable: %llu", &kib);
    if (f != NULL)
        fclose(f);
    return kib > 0 ? (size_t)kib * 1024 : (size_t)sysconf(_SC_AVPHYS_PAGES) * page;
}

static const struct be_fns fns = {
    .close = close_device,
    .measure = measure,
    .buf_alloc = host_buf_alloc,
    .buf_free = host_buf_free,
    .buf_write = host_buf_write,
    .buf_read = host_buf_read,
    .op_supported = plan_supports,
    .weights_create = weights_create,
    .weights_free = weights_free,
    .weights_trim = weights_trim,
    .plan_create = plan_create,
    .plan_run = plan_run,
    .plan_free = plan_free,
    .plan_bytes = plan_bytes,
    .measure_peak = peak_measure,
};

static kron_status open_device(int index, int n_threads, struct be_device **out)
{
    long page = sysconf(_SC_PAGESIZE);
    void *p;

    (void)index;
    KRON_TRY(mem_alloc(&p, sizeof(struct cpu_device), "a device"));
    struct cpu_device *d = p;
    d->k = cpu_kernels_best();
    d->int8 = int8_kernels_best();
    d->n_threads = n_threads;
    kron_status status = places_create("/sys/devices", &d->n_threads, &d->places);
    if (status != KRON_OK) {
        mem_free(d);
        return status;
    }
    d->base = (struct be_device){.fns = &fns, .name = "cpu",
                                .caps = {.n_threads = d->n_threads, .observes = true}};
    d->base.caps.int8_bits = d->int8->w_most < 127 ? 7 : 8;
    d->base.caps.memory_total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)page;
    d->base.caps.memory_free = memory_available((size_t)page);
    *out = &d->base;
    return KRON_OK;
}

const struct be_driver be_cpu = {.name = "cpu", .count = count, .open = open_device};
