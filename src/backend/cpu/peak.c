/* SPDX-License-Identifier: MIT
 * The roof that a profile is held against. device.c measures too, when it opens: products as small
 * as a layer's blocks and a copy by one thread, in milliseconds, for the choice of routes. Here the
 * sizes are those at which the processor is at its best, and every worker copies. */
#include "backend/cpu/peak.h"
#include "backend/cpu/cpu.h"
#include <omp.h>
#include <string.h>

enum { SIDE = 1024, PRODUCTS = 12, COPIES = 6 };
static const size_t copy_bytes = 64 << 20; /* twice that is more than a last-level cache holds */

static double best_product(const float *a, const float *b, float *c)
{
    double best = 0;

    for (int i = 0; i < PRODUCTS; i++) {
        double start = clock_seconds();
        onednn_gemm(true, SIDE, SIDE, SIDE, 1, a, SIDE, b, SIDE, 0, c, SIDE);
        double rate = 2.0 * SIDE * SIDE * SIDE / (clock_seconds() - start + 1e-9);
        best = rate > best ? rate : best;
    }
    return best;
}

/* Bytes read and bytes written both count, as gr_op_work() counts them. */
static double best_copy(char *to, const char *from, int threads)
{
    size_t part = copy_bytes / (size_t)threads;
    double best = 0;

    for (int i = 0; i < COPIES; i++) {
        double start = clock_seconds();
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int t = 0; t < threads; t++)
            memcpy(to + (size_t)t * part, from + (size_t)t * part, part);
        double rate = 2.0 * (double)(part * (size_t)threads) / (clock_seconds() - start + 1e-9);
        best = rate > best ? rate : best;
    }
    return best;
}

kron_status peak_measure(struct be_device *d, struct be_peak *out)
{
    int threads = ((struct cpu_device *)d)->n_threads, before = omp_get_max_threads();
    void *mem;

    KRON_TRY(mem_alloc(&mem, 2 * copy_bytes, "measuring the processor"));
    float *a = mem, *b = a + SIDE * SIDE, *c = b + SIDE * SIDE;
    for (size_t i = 0; i < 2 * copy_bytes / sizeof *a; i++)
        a[i] = 1 + (float)(i % 7) / 8;
    omp_set_num_threads(threads);
    out->flops = best_product(a, b, c);
    out->bytes = best_copy(mem, (char *)mem + copy_bytes, threads);
    omp_set_num_threads(before);
    mem_free(mem);
    return KRON_OK;
}
