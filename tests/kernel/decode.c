/* SPDX-License-Identifier: MIT
 * How fast weights become f32: from memory into scratch that stays in cache, on one thread, as in
 * the weight pass, against a plain copy of the same bytes there. */
#include "backend/cpu/kernels.h"
#include "case.h"
#include <math.h>
#include <string.h>
#include <time.h>

enum {
    PIECE = 4096,      /* numbers at a time */
    SOURCE = 48 << 20, /* bytes, more than caches hold */
};

/* Of this thread alone: others may be busy. */
static double cpu_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Seconds for all of `bytes`, `piece` at a time; decoded, or copied. */
static double time_pass(const struct cpu_kernels *k, enum dtype t, const char *src, size_t bytes,
                        size_t piece, float *dst, bool copy)
{
    double best = INFINITY;

    for (int i = 0; i < 7; i++) {
        double t0 = cpu_seconds();
        for (size_t at = 0; at + piece <= bytes; at += piece) {
            if (copy)
                memcpy(dst, src + at, piece);
            else
                k->decode(t, src + at, PIECE, dst);
            __asm__ volatile("" : : "r"(dst) : "memory"); /* the copy is not left out */
        }
        double seconds = cpu_seconds() - t0;
        best = seconds < best ? seconds : best;
    }
    return best;
}

void bench_decode(void)
{
    static const enum dtype types[] = {
        DT_F32, DT_F16, DT_BF16, DT_F8_E4M3, DT_F8_E5M2, DT_Q8_0, DT_Q6_K, DT_Q5_0, DT_Q5_1,
        DT_Q5_K, DT_Q4_0, DT_Q4_1, DT_Q4_K, DT_IQ4_NL, DT_IQ4_XS, DT_MXFP4, DT_NVFP4, DT_Q3_K,
        DT_Q2_K, DT_TQ2_0, DT_TQ1_0};
    const struct cpu_kernels *k = cpu_kernels_best();
    void *src = NULL, *dst = NULL;

    if (mem_alloc(&src, SOURCE, "a benchmark") == KRON_OK &&
        mem_alloc(&dst, PIECE * sizeof(float), "a benchmark") == KRON_OK) {
        memset(src, 0x11, SOURCE);
        for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
            size_t piece = dtype_bytes(types[i], PIECE), bytes = SOURCE / piece * piece;
            double copy = time_pass(k, types[i], src, bytes, piece, dst, true);
            double decode = time_pass(k, types[i], src, bytes, piece, dst, false);
            printf("decode %-8s %6.2f bits %6.2f GB/s of file, memcpy %6.2f GB/s, ratio %.2f; "
                   "%6.2f GB/s of f32 written\n", dtype_info(types[i])->name,
                   8.0 * (double)piece / PIECE, (double)bytes / decode * 1e-9,
                   (double)bytes / copy * 1e-9, copy / decode,
                   (double)bytes / (double)piece * PIECE * 4 / decode * 1e-9);
        }
    }
    mem_free(src);
    mem_free(dst);
}
