/* SPDX-License-Identifier: MIT
 * How fast weights become f32 on one thread, as in the weight pass: from memory into scratch that
 * stays in cache. Two things bound that: memory cannot give bytes faster than memcpy takes them,
 * and the core cannot store f32s faster than a loop that does only that. */
#include "backend/cpu/kernels.h"
#include "case.h"
#include <math.h>
#include <string.h>
#include <time.h>

enum {
    PIECE = 4096,      /* numbers at a time: about a row of weights */
    SOURCE = 48 << 20, /* bytes, more than caches hold */
    FIRST = 16 << 10,  /* bytes of f32 that stay in a first cache, */
    SECOND = 256 << 10, /* and in a second one, where blocks of the weight pass lie */
    TURNS = 11,
};

/* Seconds for a pass of each kind, the least of all turns. */
struct pass {
    const struct cpu_kernels *k;
    enum dtype t;
    const char *src;
    float *dst;
    size_t into; /* bytes that dst has */
    double decode, copy, store;
};

/* Of this thread alone: others may be busy. */
static double cpu_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double least(double best, double start)
{
    double seconds = cpu_seconds() - start;

    return seconds < best ? seconds : best;
}

typedef float f8x __attribute__((vector_size(32), aligned(4), may_alias));

#if defined(__x86_64__)
__attribute__((target("avx"))) /* whole vectors of 32 bytes are what most cores store at once */
#endif
static void store_only(float *dst, int64_t n, float v)
{
    for (int64_t i = 0; i < n; i += 32)
        for (int64_t j = 0; j < 32; j += 8)
            *(f8x *)(dst + i + j) = v - (f8x){0};
}

/* Nothing that was written is left out. */
static void used(const float *dst)
{
    __asm__ volatile("" : : "r"(dst) : "memory");
}

/* One pass of each kind over all of the source; in turns, so that each sees the same machine. */
static void time_turn(struct pass *p)
{
    size_t piece = dtype_bytes(p->t, PIECE), into = p->into / sizeof(float);
    size_t pieces = SOURCE / piece;

    double start = cpu_seconds();
    for (size_t i = 0; i < pieces; i++) {
        float *to = p->dst + i * PIECE % into;
        p->k->decode(p->t, p->src + i * piece, PIECE, to);
        used(to);
    }
    p->decode = least(p->decode, start);
    start = cpu_seconds();
    for (size_t at = 0; at < pieces * piece; at += FIRST) { /* as large as copies are fastest */
        size_t left = pieces * piece - at;
        memcpy(p->dst, p->src + at, left < FIRST ? left : FIRST);
        used(p->dst);
    }
    p->copy = least(p->copy, start);
    start = cpu_seconds();
    for (size_t i = 0; i < pieces; i++) {
        store_only(p->dst + i * PIECE % into, PIECE, 1);
        used(p->dst);
    }
    p->store = least(p->store, start);
}

static void time_type(const struct cpu_kernels *k, enum dtype t, const char *src, float *dst,
                      size_t into)
{
    struct pass p = {k, t, src, dst, into, INFINITY, INFINITY, INFINITY};
    size_t piece = dtype_bytes(t, PIECE);
    double file = (double)(SOURCE / piece * piece) * 1e-9;
    double f32 = (double)(SOURCE / piece * PIECE * sizeof(float)) * 1e-9;

    for (int i = 0; i < TURNS; i++)
        time_turn(&p);
    bool memory = p.copy > p.store;
    printf("decode %-8s to %3d kB: %5.2f of %5.2f GB/s of file, %5.1f of %5.1f GB/s of f32, "
           "%3.0f %% of %s\n", dtype_info(t)->name, (int)(into >> 10), file / p.decode,
           file / p.copy, f32 / p.decode, f32 / p.store,
           100 * (memory ? p.copy : p.store) / p.decode, memory ? "memcpy" : "storing");
}

void bench_decode(void)
{
    static const enum dtype types[] = {
        DT_F32, DT_F16, DT_BF16, DT_F8_E4M3, DT_F8_E5M2, DT_Q8_0, DT_Q6_K, DT_Q5_0, DT_Q5_1,
        DT_Q5_K, DT_Q4_0, DT_Q4_1, DT_Q4_K, DT_IQ4_NL, DT_IQ4_XS, DT_MXFP4, DT_NVFP4, DT_Q3_K,
        DT_Q2_K, DT_TQ2_0, DT_TQ1_0};
    void *src = NULL, *dst = NULL;

    if (mem_alloc(&src, SOURCE, "a benchmark") == KRON_OK &&
        mem_alloc(&dst, SECOND, "a benchmark") == KRON_OK) {
        memset(src, 0x11, SOURCE);
        for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
            time_type(cpu_kernels_best(), types[i], src, dst, FIRST);
            time_type(cpu_kernels_best(), types[i], src, dst, SECOND);
        }
    }
    mem_free(src);
    mem_free(dst);
}
