/* SPDX-License-Identifier: MIT
 * From deltas to LoRA, LoKr or a full difference. What can be said by the factors is never
 * multiplied out: a LoRA is cut by its own factors, a LoKr becomes a LoRA by the singular values
 * of both sides. Everything else goes through the whole difference of the layer. */
#include "convert/form.h"
#include "adapter/product.h"
#include "convert/svd.h"
#include "tensor/mat.h"
#include <math.h>
#include <string.h>

/* Where a whole difference is to be cut by its energy alone: looking for more would cost as much
 * as writing it. */
enum { MOST_RANKS = 256 };

const char *form_text(enum form f)
{
    static const char *const text[FORM_COUNT] = {"nothing", "LoRA", "LoHa", "LoKr",
                                                 "full difference"};
    return text[f];
}

void made_free(struct made *m)
{
    mem_free(m->a);
    mem_free(m->b);
    mem_free(m->c);
    mem_free(m->d);
    mem_free(m->w1);
    mem_free(m->w2);
    mem_free(m->full);
    mem_free(m->bias);
    memset(m, 0, sizeof *m);
}

/* --- cutting --- */

/* Fewest ranks that hold the share `energy` of `total`; all of s where it is not asked for. */
static int64_t ranks_of(const struct svd *s, double energy, double total)
{
    double sum = 0;

    if (energy <= 0)
        return s->k;
    for (int64_t i = 0; i < s->k; i++)
        if ((sum += s->s[i] * s->s[i]) >= energy * total)
            return i + 1;
    return s->k;
}

/* a = u sqrt(s), b = sqrt(s) v', of the first r. */
static kron_status split(const struct svd *s, int64_t r, float **a, float **b)
{
    KRON_TRY(mem_floats(a, s->m * r, "a factor"));
    KRON_TRY(mem_floats(b, s->n * r, "a factor"));
    for (int64_t j = 0; j < r; j++) {
        float root = (float)sqrt(s->s[j]);
        for (int64_t i = 0; i < s->m; i++)
            (*a)[i * r + j] = root * s->u[i * s->k + j];
        for (int64_t i = 0; i < s->n; i++)
            (*b)[j * s->n + i] = root * s->v[i * s->k + j];
    }
    return KRON_OK;
}

/* A decomposition as a LoRA; frees it. A layer that is all zero keeps one rank. */
static kron_status take_lora(struct svd *s, const struct form_want *want, double total,
                             struct made *out)
{
    int64_t r = ranks_of(s, want->energy, total);

    out->form = FORM_LORA;
    out->scale = 1;
    out->rank = r;
    kron_status status = split(s, r, &out->a, &out->b);
    svd_free(s);
    return status;
}

static double energy_of(const struct svd *s)
{
    double sum = 0;

    for (int64_t i = 0; i < s->k; i++)
        sum += s->s[i] * s->s[i];
    return sum;
}

/* --- factors of several deltas as one --- */

static bool all_low_rank(struct delta_list list)
{
    for (int i = 0; i < list.n; i++)
        if (list.at[i].kind != DELTA_LOW_RANK)
            return false;
    return true;
}

/* One delta of this kind on all rows of the layer: its factors can be taken as they are. */
static bool is_one(const struct layer *l, struct delta_list list, enum delta_kind kind)
{
    const struct delta *d = &list.at[0];

    return list.n == 1 && d->kind == kind && d->at == 0 && d->from == 0 && d->rows == l->out &&
           (kind != DELTA_KRON || d->rows == d->up * d->vp);
}

static double scale_of(const struct delta *d, const float *strengths)
{
    return (double)delta_strength(d, strengths) * d->scale;
}

/* Columns of a and rows of b side by side, a's zero outside the rows that a delta changes;
 * strengths and scales go into a unless there is only one delta, whose factors stay as they are. */
static kron_status concatenate(const struct layer *l, struct delta_list list,
                               const float *strengths, struct made *out)
{
    int64_t k = layer_k(l), r = 0, at = 0;

    for (int i = 0; i < list.n; i++)
        r += list.at[i].rank;
    KRON_TRY(mem_floats(&out->a, l->out * r, "a factor"));
    KRON_TRY(mem_floats(&out->b, r * k, "a factor"));
    out->form = FORM_LORA;
    out->rank = r;
    out->scale = list.n == 1 ? scale_of(&list.at[0], strengths) : 1;
    for (int i = 0; i < list.n; i++) {
        const struct delta *d = &list.at[i];
        float s = list.n == 1 ? 1 : (float)scale_of(d, strengths);
        for (int64_t o = 0; o < d->rows; o++) {
            float *row = out->a + (d->at + o) * r + at;
            tensor_decode(&d->a, (d->from + o) * d->rank, d->rank, row);
            for (int64_t q = 0; q < d->rank; q++)
                row[q] *= s;
        }
        tensor_decode(&d->b, 0, d->rank * k, out->b + at * k);
        at += d->rank;
    }
    return KRON_OK;
}

/* The whole difference, with strengths. */
static kron_status whole(const struct layer *l, struct delta_list list, const float *strengths,
                         float **out)
{
    KRON_TRY(mem_floats(out, l->out * layer_k(l), "a layer's difference"));
    return effective_change(l, list, strengths, *out);
}

/* --- to LoRA --- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static kron_status cut_low_rank(const struct layer *l, const struct form_want *want,
                                struct made *out)
{
    int64_t limit = want->rank > 0 ? want->rank : out->rank;
    struct made cut = {0};
    struct svd s, all;

    if (want->energy <= 0 && out->rank <= limit)
        return KRON_OK;
    KRON_TRY(svd_product(out->a, out->b, l->out, out->rank, layer_k(l), out->rank, &all));
    double total = energy_of(&all);
    svd_free(&all);
    KRON_TRY(svd_product(out->a, out->b, l->out, out->rank, layer_k(l), limit, &s));
    kron_status status = take_lora(&s, want, total, &cut);
    cut.scale = out->scale;
    made_free(out); /* no bias yet */
    *out = cut;
    return status;
}

/* w2's decomposition: by its factors where it has some. */
static kron_status svd_w2(const struct product *p, int64_t k, struct svd *out)
{
    const struct delta *d = p->d;
    int64_t m = p->k / d->uq;

    if (p->a != NULL)
        return svd_product(p->a, p->b, d->vp, d->rank, m, k, out);
    return svd_dense(p->w2, d->vp, m, k, out);
}

static kron_status kron_to_lora(const struct product *p, double scale,
                                const struct form_want *want, struct made *out)
{
    const struct delta *d = p->d;
    int64_t most = least(p->rows, p->k);
    int64_t limit = want->rank > 0 ? want->rank : least(most, MOST_RANKS);
    struct svd s1, s2 = {0}, s = {0};

    KRON_TRY(svd_dense(p->w1, d->up, d->uq, least(d->up, d->uq), &s1));
    kron_status status = svd_w2(p, limit, &s2);
    if (status == KRON_OK)
        status = svd_kron(&s1, &s2, limit, &s);
    svd_free(&s1);
    svd_free(&s2);
    KRON_TRY(status);
    KRON_TRY(take_lora(&s, want, mat_norm2(p->w1, d->up * d->uq) *
                                     mat_norm2(p->w2, d->vp * p->k / d->uq), out));
    out->scale = scale;
    return KRON_OK;
}

static kron_status whole_to_lora(const struct layer *l, struct delta_list list,
                                 const float *strengths, const struct form_want *want,
                                 struct made *out)
{
    int64_t limit = want->rank > 0 ? want->rank : MOST_RANKS;
    float *x = NULL;
    struct svd s = {0};
    double total = 0;
    kron_status status = whole(l, list, strengths, &x);

    if (status == KRON_OK)
        status = svd_dense(x, l->out, layer_k(l), limit, &s);
    if (status == KRON_OK)
        total = mat_norm2(x, l->out * layer_k(l));
    mem_free(x);
    return status == KRON_OK ? take_lora(&s, want, total, out) : status;
}

static kron_status to_lora(const struct layer *l, struct delta_list list, const float *strengths,
                           const struct form_want *want, struct made *out)
{
    struct product p;

    if (all_low_rank(list)) {
        KRON_TRY(concatenate(l, list, strengths, out));
        return cut_low_rank(l, want, out);
    }
    if (want->rank == 0 && want->energy <= 0)
        return err_set(KRON_ERR_ARGUMENT, "%s: its change is not of low rank: a rank or an energy "
                       "to keep is needed", l->name);
    if (!is_one(l, list, DELTA_KRON))
        return whole_to_lora(l, list, strengths, want, out);
    KRON_TRY(product_open(&p, &list.at[0], l));
    kron_status status = kron_to_lora(&p, scale_of(&list.at[0], strengths), want, out);
    product_close(&p);
    return status;
}

/* --- to LoKr --- */

static int64_t divisor(int64_t n, int64_t most)
{
    int64_t d = least(n, most);

    while (n % d != 0)
        d--;
    return d;
}

/* w2 as a product of the ranks asked for. */
static kron_status cut_w2(const struct form_want *want, struct made *out)
{
    int64_t limit = want->rank > 0 ? want->rank : least(MOST_RANKS, least(out->vp, out->m));
    struct svd s;

    if (want->energy <= 0 && (want->rank == 0 || limit >= least(out->vp, out->m)))
        return KRON_OK;
    KRON_TRY(svd_dense(out->w2, out->vp, out->m, limit, &s));
    out->rank = ranks_of(&s, want->energy, mat_norm2(out->w2, out->vp * out->m));
    kron_status status = split(&s, out->rank, &out->a, &out->b);
    svd_free(&s);
    mem_free(out->w2);
    out->w2 = NULL;
    return status;
}

/* A pair as it is; its w2 keeps its own ranks where they are no more than asked for. */
static kron_status keep_kron(const struct layer *l, const struct delta *d, double scale,
                             const struct form_want *want, struct made *out)
{
    struct product p;
    bool ranks = d->w2.data == NULL && want->energy <= 0 &&
                 (want->rank == 0 || d->rank <= want->rank);

    KRON_TRY(product_open(&p, d, l));
    out->form = FORM_LOKR;
    out->scale = scale;
    out->up = d->up;
    out->uq = d->uq;
    out->vp = d->vp;
    out->m = p.k / d->uq;
    out->w1 = p.w1;
    p.w1 = NULL;
    if (ranks) {
        out->rank = d->rank;
        out->a = p.a;
        out->b = p.b;
        p.a = p.b = NULL;
    } else {
        out->w2 = p.w2;
        p.w2 = NULL;
    }
    product_close(&p);
    return ranks ? KRON_OK : cut_w2(want, out);
}

static kron_status to_lokr(const struct layer *l, struct delta_list list, const float *strengths,
                           const struct form_want *want, struct made *out)
{
    int64_t factor = want->factor > 0 ? want->factor : 8;
    const struct delta *d = &list.at[0];
    float *x = NULL;

    if (is_one(l, list, DELTA_KRON) &&
        (want->factor == 0 || (d->up <= factor && d->uq <= factor)))
        return keep_kron(l, d, scale_of(d, strengths), want, out);
    out->form = FORM_LOKR;
    out->scale = 1;
    out->up = divisor(l->out, factor);
    out->uq = divisor(l->in, factor);
    out->vp = l->out / out->up;
    out->m = layer_k(l) / out->uq;
    KRON_TRY(mem_floats(&out->w1, out->up * out->uq, "a factor"));
    KRON_TRY(mem_floats(&out->w2, out->vp * out->m, "a factor"));
    kron_status status = whole(l, list, strengths, &x);
    if (status == KRON_OK)
        status = kron_nearest(x, out->up, out->uq, out->vp, out->m, out->w1, out->w2);
    mem_free(x);
    return status == KRON_OK ? cut_w2(want, out) : status;
}

/* --- as it is --- */

static kron_status keep_loha(const struct layer *l, const struct delta *d, double scale,
                             struct made *out)
{
    struct product p;

    KRON_TRY(product_open(&p, d, l));
    *out = (struct made){.form = FORM_LOHA, .scale = scale, .rank = d->rank, .a = p.a, .b = p.b,
                         .c = p.c, .d = p.e};
    p.a = p.b = p.c = p.e = NULL;
    product_close(&p);
    return KRON_OK;
}

static kron_status to_full(const struct layer *l, struct delta_list list, const float *strengths,
                           struct made *out)
{
    out->form = FORM_FULL;
    out->scale = 1;
    return whole(l, list, strengths, &out->full);
}

static kron_status keep(const struct layer *l, struct delta_list list, const float *strengths,
                        const struct form_want *want, struct made *out)
{
    const struct delta *d = &list.at[0];
    bool cut = want->rank > 0 || want->energy > 0;

    if (all_low_rank(list) || (list.n > 1 && cut))
        return to_lora(l, list, strengths, want, out);
    if (is_one(l, list, DELTA_KRON))
        return keep_kron(l, d, scale_of(d, strengths), want, out);
    if (is_one(l, list, DELTA_HADAMARD) && !cut)
        return keep_loha(l, d, scale_of(d, strengths), out);
    return cut ? to_lora(l, list, strengths, want, out) : to_full(l, list, strengths, out);
}

static kron_status make(const struct layer *l, struct delta_list list, const float *strengths,
                        const struct form_want *want, struct made *out)
{
    if (l->kind != LAYER_LINEAR && l->kind != LAYER_CONV)
        return to_full(l, list, strengths, out);
    switch (want->form) {
    case KRON_FORM_LORA:
        return to_lora(l, list, strengths, want, out);
    case KRON_FORM_LOKR:
        return to_lokr(l, list, strengths, want, out);
    case KRON_FORM_FULL:
        return to_full(l, list, strengths, out);
    default:
        return keep(l, list, strengths, want, out);
    }
}

/* What a product can say; a bias is set aside. */
static bool can_change(const struct delta *d)
{
    struct delta weight = *d;

    weight.bias = NULL;
    return !delta_has_weight(d) || product_is_all(&weight);
}

static kron_status choose(const struct layer *l, struct delta_list list, const float *strengths,
                          struct delta_list *acting, struct made *out)
{
    for (int i = 0; i < list.n; i++) {
        const struct delta *d = &list.at[i];
        if (!can_change(d))
            return err_set(KRON_ERR_UNSUPPORTED, "%s: its change depends on the weight, so it can "
                           "only be renamed or stored in another type", l->name);
        if (delta_strength(d, strengths) == 0)
            continue;
        if (d->bias != NULL && out->bias == NULL)
            KRON_TRY(mem_floats(&out->bias, l->out, "a bias"));
        if (delta_has_weight(d))
            acting->at[acting->n++] = *d;
    }
    if (out->bias != NULL)
        effective_bias(list, strengths, out->bias);
    return KRON_OK;
}

kron_status form_make(const struct layer *l, struct delta_list list, const float *strengths,
                      const struct form_want *want, struct made *out)
{
    struct delta_list acting = {0, NULL};
    struct made bias = {.bias = NULL};

    *out = (struct made){.form = FORM_NONE};
    KRON_TRY(mem_alloc_n((void **)&acting.at, (size_t)list.n, sizeof *acting.at, "deltas"));
    kron_status status = choose(l, list, strengths, &acting, &bias);
    if (status == KRON_OK && acting.n > 0)
        status = make(l, acting, strengths, want, out);
    mem_free(acting.at);
    out->bias = bias.bias;
    if (status != KRON_OK)
        made_free(out);
    return status;
}
