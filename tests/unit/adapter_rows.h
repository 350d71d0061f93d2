/* SPDX-License-Identifier: MIT
 * Every family and layout of adapter files as a row: what makes its tensors, for which layers.
 * A new family is a row of fx_rows[]. */
#ifndef UNIT_ADAPTER_ROWS_H
#define UNIT_ADAPTER_ROWS_H
#include "adapter_fixture.h"

enum fx_kind { FX_LINEAR, FX_CONV1, FX_CONV3, FX_CONV3_STRIDED, FX_CONV1X3, FX_KINDS };
enum {
    FX_ANY = (1 << FX_KINDS) - 1,
    FX_WINDOWS = 1 << FX_CONV3 | 1 << FX_CONV3_STRIDED | 1 << FX_CONV1X3,
};

/* What a row's tensors are made for. */
struct fx_maker {
    struct fx_file *file;
    uint64_t *seed;
    enum dtype type;             /* of the factors */
    int64_t r;                   /* rank */
    int64_t up, uq, vp, vq, out, in; /* out = up * vp, in = uq * vq */
    int kh, kw;
};

#define FX_PREFIX "lora_unet_conv_in."
#define FX_PART(m, part, ...) \
    fx_add((m)->file, FX_PREFIX part, (m)->type, (m)->seed, FX_DIMS(__VA_ARGS__))

static inline void fx_alpha(struct fx_maker *m, float v)
{
    fx_add_scalar(m->file, FX_PREFIX "alpha", DT_F32, v);
}

/* --- LoRA, full --- */

static inline void fx_row_lora(struct fx_maker *m)
{
    fx_alpha(m, 2);
    FX_PART(m, "lora_down.weight", m->r, m->in * m->kh * m->kw);
    FX_PART(m, "lora_up.weight", m->out, m->r);
}

static inline void fx_row_lora_4d(struct fx_maker *m)
{
    FX_PART(m, "lora_down.weight", m->r, m->in, m->kh, m->kw);
    FX_PART(m, "lora_up.weight", m->out, m->r, 1, 1);
}

static inline void fx_row_lora_mid(struct fx_maker *m)
{
    fx_alpha(m, 0.5f);
    FX_PART(m, "lora_down.weight", m->r, m->in, 1, 1);
    FX_PART(m, "lora_up.weight", m->out, m->r, 1, 1);
    FX_PART(m, "lora_mid.weight", m->r, m->r, m->kh, m->kw);
}

static inline void fx_row_full(struct fx_maker *m)
{
    FX_PART(m, "diff", m->out, m->in, m->kh, m->kw);
}

/* --- LoHa --- */

static inline void fx_row_loha(struct fx_maker *m)
{
    fx_alpha(m, 2);
    FX_PART(m, "hada_w1_a", m->out, m->r);
    FX_PART(m, "hada_w1_b", m->r, m->in * m->kh * m->kw);
    FX_PART(m, "hada_w2_a", m->out, m->r);
    FX_PART(m, "hada_w2_b", m->r, m->in * m->kh * m->kw);
}

static inline void fx_row_loha_tucker(struct fx_maker *m)
{
    fx_alpha(m, 1);
    FX_PART(m, "hada_t1", m->r, m->r, m->kh, m->kw);
    FX_PART(m, "hada_w1_a", m->r, m->out);
    FX_PART(m, "hada_w1_b", m->r, m->in);
    FX_PART(m, "hada_t2", m->r, m->r, m->kh, m->kw);
    FX_PART(m, "hada_w2_a", m->r, m->out);
    FX_PART(m, "hada_w2_b", m->r, m->in);
}

/* --- LoKr: FIELD.md 3.4 --- */

static inline void fx_w1(struct fx_maker *m)
{
    FX_PART(m, "lokr_w1", m->up, m->uq);
}

static inline void fx_w1_pair(struct fx_maker *m)
{
    FX_PART(m, "lokr_w1_a", m->up, m->r);
    FX_PART(m, "lokr_w1_b", m->r, m->uq);
}

static inline void fx_w2(struct fx_maker *m)
{
    FX_PART(m, "lokr_w2", m->vp, m->vq, m->kh, m->kw);
}

static inline void fx_w2_flat(struct fx_maker *m)
{
    FX_PART(m, "lokr_w2", m->vp, m->vq * m->kh * m->kw);
}

static inline void fx_w2_pair(struct fx_maker *m)
{
    FX_PART(m, "lokr_w2_a", m->vp, m->r);
    FX_PART(m, "lokr_w2_b", m->r, m->vq * m->kh * m->kw);
}

static inline void fx_w2_pair_4d(struct fx_maker *m)
{
    FX_PART(m, "lokr_w2_a", m->vp, m->r);
    FX_PART(m, "lokr_w2_b", m->r, m->vq, m->kh, m->kw);
}

static inline void fx_w2_tucker(struct fx_maker *m)
{
    FX_PART(m, "lokr_t2", m->r, m->r, m->kh, m->kw);
    FX_PART(m, "lokr_w2_a", m->r, m->vp);
    FX_PART(m, "lokr_w2_b", m->r, m->vq);
}

#define FX_LOKR_ROW(name, w1, w2)                    \
    static inline void name(struct fx_maker *m)      \
    {                                                \
        fx_alpha(m, 3); /* of no effect on a pair of whole factors */ \
        w1(m);                                       \
        w2(m);                                       \
    }
FX_LOKR_ROW(fx_row_lokr, fx_w1, fx_w2)
FX_LOKR_ROW(fx_row_lokr_flat, fx_w1, fx_w2_flat)
FX_LOKR_ROW(fx_row_lokr_w2, fx_w1, fx_w2_pair)
FX_LOKR_ROW(fx_row_lokr_w2_4d, fx_w1, fx_w2_pair_4d)
FX_LOKR_ROW(fx_row_lokr_tucker, fx_w1, fx_w2_tucker)
FX_LOKR_ROW(fx_row_lokr_w1, fx_w1_pair, fx_w2)
FX_LOKR_ROW(fx_row_lokr_w1_flat, fx_w1_pair, fx_w2_flat)
FX_LOKR_ROW(fx_row_lokr_both, fx_w1_pair, fx_w2_pair)
FX_LOKR_ROW(fx_row_lokr_both_4d, fx_w1_pair, fx_w2_pair_4d)
FX_LOKR_ROW(fx_row_lokr_both_tucker, fx_w1_pair, fx_w2_tucker)

/* The larger number of rows in w1, as kohya's KronA and files trained "unbalanced" have it. */
static inline void fx_sizes_unbalanced(struct fx_maker *m)
{
    m->up = 13;
    m->vp = 2;
}

/* Kohya cuts in*kh*kw: w1's columns go through channels' windows. */
static inline void fx_sizes_across(struct fx_maker *m)
{
    m->uq = m->kh * m->kw;
    m->vq = 1;
    m->in = m->up; /* 1 to 5: no multiple of 9, and of 3 only once */
    m->in += m->in % m->uq == 0;
}

static inline void fx_row_lokr_across(struct fx_maker *m)
{
    fx_w1(m);
    FX_PART(m, "lokr_w2", m->vp, m->in);
}

/* --- all of them --- */

struct fx_row {
    const char *name;
    void (*add)(struct fx_maker *m);
    unsigned kinds;                  /* bits 1 << fx_kind */
    bool ranked;                     /* has a rank; else one case serves for all */
    void (*sizes)(struct fx_maker *m); /* may change up, uq, vp, vq; sets in where it is not
                                        * uq * vq; NULL: any sizes serve */
};

static const struct fx_row fx_rows[] = {
    {"lora", fx_row_lora, FX_ANY, true, NULL},
    {"lora 4-D, no alpha", fx_row_lora_4d, FX_ANY, true, NULL},
    {"lora with mid", fx_row_lora_mid, FX_ANY, true, NULL},
    {"loha", fx_row_loha, FX_ANY, true, NULL},
    {"loha tucker", fx_row_loha_tucker, FX_ANY, true, NULL},
    {"lokr", fx_row_lokr, FX_ANY, false, NULL},
    {"lokr unbalanced", fx_row_lokr, FX_ANY, false, fx_sizes_unbalanced},
    {"lokr flat w2", fx_row_lokr_flat, FX_ANY, false, NULL},
    {"lokr flat w2 across channels", fx_row_lokr_across, FX_WINDOWS, false, fx_sizes_across},
    {"lokr split w2", fx_row_lokr_w2, FX_ANY, true, NULL},
    {"lokr split w2 4-D", fx_row_lokr_w2_4d, FX_WINDOWS, true, NULL},
    {"lokr split w2 unbalanced", fx_row_lokr_w2, FX_ANY, true, fx_sizes_unbalanced},
    {"lokr tucker", fx_row_lokr_tucker, FX_ANY, true, NULL},
    {"lokr split w1", fx_row_lokr_w1, FX_ANY, true, NULL},
    {"lokr split w1, flat w2", fx_row_lokr_w1_flat, FX_WINDOWS, true, NULL},
    {"lokr both split", fx_row_lokr_both, FX_ANY, true, NULL},
    {"lokr both split 4-D", fx_row_lokr_both_4d, FX_WINDOWS, true, NULL},
    {"lokr both split, tucker", fx_row_lokr_both_tucker, FX_ANY, true, NULL},
    {"full difference", fx_row_full, FX_ANY, false, NULL},
};
enum { FX_ROWS = sizeof fx_rows / sizeof *fx_rows };

/* The layer of a kind and the tensors' sizes for it, drawn from *seed; m->file and m->type are
 * the caller's. */
static inline void fx_draw_sizes(const struct fx_row *row, enum fx_kind kind, struct fx_maker *m)
{
    static const int64_t v[] = {1, 2, 3, 5, 8, 9, 17};

    m->kh = kind == FX_CONV3 || kind == FX_CONV3_STRIDED ? 3 : 1;
    m->kw = kind == FX_CONV1X3 ? 3 : m->kh;
    m->up = 1 + fx_random(m->seed) % 5;
    m->uq = 1 + fx_random(m->seed) % 5;
    m->vp = v[fx_random(m->seed) % 7];
    m->vq = v[fx_random(m->seed) % 5];
    m->in = 0;
    if (row->sizes != NULL)
        row->sizes(m);
    m->out = m->up * m->vp;
    if (m->in == 0)
        m->in = m->uq * m->vq;
}

#endif
