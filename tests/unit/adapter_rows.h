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
    enum dtype type;                 /* of the factors */
    int64_t r;                       /* rank */
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

#define FX_LOKR_ROW(name, w1, w2)                                     \
    static inline void name(struct fx_maker *m)                       \
    {                                                                 \
        fx_alpha(m, 3); /* of no effect on a pair of whole factors */ \
        w1(m);                                                        \
        w2(m);                                                        \
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

/* --- families that look at the weight, biases --- */

/* DoRA's axis; PEFT's magnitude is always of the output. */
enum fx_dora { FX_NO_DORA, FX_DORA_OUT, FX_DORA_IN, FX_DORA_PEFT };

/* Lengths are positive. */
static inline void fx_add_dora(struct fx_maker *m, enum fx_dora dora)
{
    bool absolute = m->file->absolute;
    int64_t n = dora == FX_DORA_IN ? m->in : m->out;

    m->file->absolute = true;
    if (dora == FX_DORA_PEFT)
        FX_PART(m, "lora_magnitude_vector", n);
    else if (dora == FX_DORA_IN)
        FX_PART(m, "dora_scale", 1, n, 1, 1);
    else
        FX_PART(m, "dora_scale", n, 1, 1, 1);
    m->file->absolute = absolute;
}

/* Rows and columns long enough that none is zero by chance. */
static inline void fx_sizes_dora(struct fx_maker *m)
{
    m->vp = 3 + m->vp % 3;
    m->vq = 3 + m->vq % 3;
}

static inline void fx_row_oft(struct fx_maker *m)
{
    FX_PART(m, "oft_blocks", m->up, m->vp, m->vp);
}

static inline void fx_row_oft_limit(struct fx_maker *m)
{
    fx_alpha(m, 0.02f);
    fx_row_oft(m);
}

static inline void fx_row_oft_rescale(struct fx_maker *m)
{
    fx_row_oft(m);
    FX_PART(m, "rescale", m->out, 1, 1, 1);
}

static inline void fx_row_boft(struct fx_maker *m)
{
    FX_PART(m, "oft_blocks", 2, m->out / 4, 4, 4);
}

static inline void fx_row_boft_rescale(struct fx_maker *m)
{
    fx_row_boft(m);
    FX_PART(m, "rescale", m->out, 1, 1, 1);
}

static inline void fx_row_oft_peft(struct fx_maker *m)
{
    FX_PART(m, "oft_R.weight", m->uq * m->kh * m->kw, m->vq * (m->vq - 1) / 2);
}

static inline void fx_sizes_oft(struct fx_maker *m)
{
    m->vp = 2 + m->vp % 5;
    m->vq = 2 + m->vq % 4;
}

static inline void fx_sizes_boft(struct fx_maker *m)
{
    m->vp = 8;
}

static inline void fx_row_glora(struct fx_maker *m)
{
    fx_alpha(m, 2);
    FX_PART(m, "a1.weight", m->in, m->r);
    FX_PART(m, "a2.weight", m->r, m->in);
    FX_PART(m, "b1.weight", m->out, m->r);
    FX_PART(m, "b2.weight", m->r, m->in, m->kh, m->kw);
}

static inline void fx_row_glora_old(struct fx_maker *m)
{
    FX_PART(m, "a1.weight", m->r, m->in);
    FX_PART(m, "a2.weight", m->in, m->r);
    FX_PART(m, "b1.weight", m->r, m->in * m->kh * m->kw);
    FX_PART(m, "b2.weight", m->out, m->r);
}

static inline void fx_row_glora_core(struct fx_maker *m)
{
    FX_PART(m, "a1.weight", m->in, m->r);
    FX_PART(m, "a2.weight", m->r, m->in);
    FX_PART(m, "b1.weight", m->out, m->r);
    FX_PART(m, "b2.weight", m->r, m->in, 1, 1);
    FX_PART(m, "bm.weight", m->r, m->r, m->kh, m->kw);
}

static inline void fx_on_input(struct fx_maker *m, int64_t v)
{
    fx_add_raw(m->file, FX_PREFIX "on_input", "I64", 0, NULL, &v, sizeof v);
}

static inline void fx_row_ia3_out(struct fx_maker *m)
{
    fx_on_input(m, 0);
    FX_PART(m, "weight", m->out);
}

static inline void fx_row_ia3_in(struct fx_maker *m)
{
    fx_on_input(m, 1);
    FX_PART(m, "weight", m->in);
}

static inline void fx_row_ia3_peft_out(struct fx_maker *m)
{
    FX_PART(m, "ia3_l", m->out, 1);
}

static inline void fx_row_ia3_peft_in(struct fx_maker *m)
{
    FX_PART(m, "ia3_l", 1, m->in);
}

/* Where both sides are as long, PEFT's shape tells nothing. */
static inline void fx_sizes_ia3_peft_in(struct fx_maker *m)
{
    m->vq += m->up * m->vp == m->uq * m->vq;
}

static inline void fx_row_full_bias(struct fx_maker *m)
{
    fx_row_full(m);
    FX_PART(m, "diff_b", m->out);
}

static inline void fx_row_lora_bias(struct fx_maker *m)
{
    fx_row_lora(m);
    FX_PART(m, "lora_up.bias", m->out);
}

static inline void fx_row_set(struct fx_maker *m)
{
    FX_PART(m, "set_weight", m->out, m->in, m->kh, m->kw);
}

/* --- all of them --- */

struct fx_row {
    const char *name;
    void (*add)(struct fx_maker *m);
    unsigned kinds;                    /* bits 1 << fx_kind */
    bool ranked;                       /* has a rank; else one case serves for all */
    void (*sizes)(struct fx_maker *m); /* may change up, uq, vp, vq; sets in where it is not
                                        * uq * vq; NULL: any sizes serve */
    enum fx_dora dora;                 /* put beside what `add` made */
    /* Of what roundings are a share: of the file's and layer's sizes, put in for their numbers; or
     * for changes that are no sum of products, what the property test says. */
    enum { FX_SUM, FX_GAINS, FX_TURNS_ROWS, FX_TURNS_COLUMNS } sum;
    int stages; /* of turning, a rescaling counting as one */
    bool unit;  /* not the line between strength 0 and 1: only strength 1 is the definition */
};

static const struct fx_row fx_rows[] = {
    {"lora", fx_row_lora, FX_ANY, .ranked = true},
    {"lora 4-D, no alpha", fx_row_lora_4d, FX_ANY, .ranked = true},
    {"lora with mid", fx_row_lora_mid, FX_ANY, .ranked = true},
    {"loha", fx_row_loha, FX_ANY, .ranked = true},
    {"loha tucker", fx_row_loha_tucker, FX_ANY, .ranked = true},
    {"lokr", fx_row_lokr, .kinds = FX_ANY},
    {"lokr unbalanced", fx_row_lokr, .kinds = FX_ANY, .sizes = fx_sizes_unbalanced},
    {"lokr flat w2", fx_row_lokr_flat, .kinds = FX_ANY},
    {"lokr flat w2 across channels", fx_row_lokr_across, .kinds = FX_WINDOWS,
     .sizes = fx_sizes_across},
    {"lokr split w2", fx_row_lokr_w2, FX_ANY, .ranked = true},
    {"lokr split w2 4-D", fx_row_lokr_w2_4d, FX_WINDOWS, .ranked = true},
    {"lokr split w2 unbalanced", fx_row_lokr_w2, FX_ANY, .ranked = true,
     .sizes = fx_sizes_unbalanced},
    {"lokr tucker", fx_row_lokr_tucker, FX_ANY, .ranked = true},
    {"lokr split w1", fx_row_lokr_w1, FX_ANY, .ranked = true},
    {"lokr split w1, flat w2", fx_row_lokr_w1_flat, FX_WINDOWS, .ranked = true},
    {"lokr both split", fx_row_lokr_both, FX_ANY, .ranked = true},
    {"lokr both split 4-D", fx_row_lokr_both_4d, FX_WINDOWS, .ranked = true},
    {"lokr both split, tucker", fx_row_lokr_both_tucker, FX_ANY, .ranked = true},
    {"full difference", fx_row_full, .kinds = FX_ANY},
    {"full difference with bias", fx_row_full_bias, .kinds = FX_ANY},
    {"lora with bias", fx_row_lora_bias, FX_ANY, .ranked = true},
    {"lora, dora of rows", fx_row_lora, FX_ANY, .ranked = true, .sizes = fx_sizes_dora,
     .dora = FX_DORA_OUT},
    {"lora, dora of columns", fx_row_lora, FX_ANY, .ranked = true, .sizes = fx_sizes_dora,
     .dora = FX_DORA_IN},
    {"lora with mid, dora", fx_row_lora_mid, FX_WINDOWS, .ranked = true, .sizes = fx_sizes_dora,
     .dora = FX_DORA_OUT},
    {"lora, dora by PEFT", fx_row_lora_4d, FX_ANY, .ranked = true, .sizes = fx_sizes_dora,
     .dora = FX_DORA_PEFT},
    {"loha, dora of rows", fx_row_loha, FX_ANY, .ranked = true, .sizes = fx_sizes_dora,
     .dora = FX_DORA_OUT},
    {"loha, dora of columns", fx_row_loha, FX_ANY, .ranked = true, .sizes = fx_sizes_dora,
     .dora = FX_DORA_IN},
    {"loha tucker, dora", fx_row_loha_tucker, FX_WINDOWS, .ranked = true, .sizes = fx_sizes_dora,
     .dora = FX_DORA_OUT},
    {"lokr, dora of rows", fx_row_lokr, .kinds = FX_ANY, .sizes = fx_sizes_dora,
     .dora = FX_DORA_OUT},
    {"lokr, dora of columns", fx_row_lokr, .kinds = FX_ANY, .sizes = fx_sizes_dora,
     .dora = FX_DORA_IN},
    {"lokr split w2, dora of rows", fx_row_lokr_w2, FX_ANY, .ranked = true, .sizes = fx_sizes_dora,
     .dora = FX_DORA_OUT},
    {"lokr split w2, dora of columns", fx_row_lokr_w2, FX_ANY, .ranked = true,
     .sizes = fx_sizes_dora, .dora = FX_DORA_IN},
    {"lokr both split, dora", fx_row_lokr_both, FX_ANY, .ranked = true, .sizes = fx_sizes_dora,
     .dora = FX_DORA_OUT},
    {"lokr tucker, dora of rows", fx_row_lokr_tucker, FX_WINDOWS, .ranked = true,
     .sizes = fx_sizes_dora, .dora = FX_DORA_OUT},
    {"lokr tucker, dora of columns", fx_row_lokr_tucker, FX_WINDOWS, .ranked = true,
     .sizes = fx_sizes_dora, .dora = FX_DORA_IN},
    {"full difference, dora", fx_row_full, .kinds = FX_ANY, .sizes = fx_sizes_dora,
     .dora = FX_DORA_OUT},
    {"oft", fx_row_oft, .kinds = FX_ANY, .sizes = fx_sizes_oft, .sum = FX_TURNS_ROWS, .stages = 1},
    {"oft with a limit", fx_row_oft_limit, .kinds = FX_ANY, .sizes = fx_sizes_oft,
     .sum = FX_TURNS_ROWS, .stages = 1},
    {"oft with rescale", fx_row_oft_rescale, .kinds = FX_ANY, .sizes = fx_sizes_oft,
     .sum = FX_TURNS_ROWS, .stages = 2, .unit = true},
    {"oft by PEFT", fx_row_oft_peft, .kinds = FX_ANY, .sizes = fx_sizes_oft,
     .sum = FX_TURNS_COLUMNS, .stages = 1},
    {"boft", fx_row_boft, .kinds = FX_ANY, .sizes = fx_sizes_boft, .sum = FX_TURNS_ROWS,
     .stages = 2, .unit = true},
    {"boft with rescale", fx_row_boft_rescale, .kinds = FX_ANY, .sizes = fx_sizes_boft,
     .sum = FX_TURNS_ROWS, .stages = 3, .unit = true},
    {"glora", fx_row_glora, FX_ANY, .ranked = true},
    {"glora, old layout", fx_row_glora_old, FX_ANY, .ranked = true},
    {"glora with core", fx_row_glora_core, FX_WINDOWS, .ranked = true},
    {"ia3 of outputs", fx_row_ia3_out, .kinds = FX_ANY},
    {"ia3 of inputs", fx_row_ia3_in, .kinds = FX_ANY},
    {"ia3 of outputs by PEFT", fx_row_ia3_peft_out, .kinds = FX_ANY, .sum = FX_GAINS},
    {"ia3 of inputs by PEFT", fx_row_ia3_peft_in, .kinds = FX_ANY, .sizes = fx_sizes_ia3_peft_in,
     .sum = FX_GAINS},
    {"weight replacement", fx_row_set, .kinds = FX_ANY, .unit = true},
};
enum { FX_ROWS = sizeof fx_rows / sizeof *fx_rows };

static inline void fx_row_add(const struct fx_row *row, struct fx_maker *m)
{
    row->add(m);
    if (row->dora != FX_NO_DORA)
        fx_add_dora(m, row->dora);
}

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
