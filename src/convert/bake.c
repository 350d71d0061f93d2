/* SPDX-License-Identifier: MIT
 * Adapters baked into a checkpoint, tensor by tensor. */
#include "adapter/product.h"
#include "convert/convert.h"
#include "convert/metadata.h"
#include <math.h>
#include <string.h>

struct baking {
    const struct bake_job *job;
    const float *strengths;
    /* Layers with deltas by the tensor that holds their weight, or bias; -1: no (more) layer. */
    struct holders {
        int *first, *next;
    } weight, bias;
    int n_no_bias; /* layers whose bias would change and that have none */
    struct tensor *out; /* the header's */
    struct file_writer writer;
    int n_changed;
};

/* The tensor of the checkpoint that a layer's weight or bias is, or lies in; -1: of none. */
static int64_t tensor_of(const struct st_file *st, const struct tensor *part)
{
    int64_t low = 0, high = st_count(st) - 1;

    while (low < high) { /* tensors are in the order of their data */
        int64_t mid = (low + high + 1) / 2;
        if ((uintptr_t)st_at(st, mid)->data <= (uintptr_t)part->data)
            low = mid;
        else
            high = mid - 1;
    }
    const struct tensor *t = st_at(st, low);
    uintptr_t begin = (uintptr_t)t->data, at = (uintptr_t)part->data;
    return at >= begin && at + part->bytes <= begin + t->bytes ? low : -1;
}

static kron_status hold(const struct baking *b, struct holders *h, const struct layer *l,
                        const struct tensor *part)
{
    int64_t t = tensor_of(b->job->checkpoint, part);

    if (t < 0)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: the layer %s is not in this file",
                       st_path(b->job->checkpoint), l->name);
    h->next[l->id] = h->first[t];
    h->first[t] = l->id;
    return KRON_OK;
}

static kron_status find_layers(struct baking *b)
{
    const struct layer_table *layers = b->job->layers;

    for (int64_t i = 0; i < st_count(b->job->checkpoint); i++)
        b->weight.first[i] = b->bias.first[i] = -1;
    for (int i = 0; i < layers->n; i++) {
        const struct layer *l = layers->at[i];
        struct delta_list list = delta_set_list(adapter_set_deltas(b->job->set), l);
        bool weight = false, bias = false;
        for (int k = 0; k < list.n; k++) {
            weight = weight || delta_has_weight(&list.at[k]);
            bias = bias || list.at[k].bias != NULL;
        }
        if (weight)
            KRON_TRY(hold(b, &b->weight, l, &l->weight));
        if (bias && l->bias.data != NULL)
            KRON_TRY(hold(b, &b->bias, l, &l->bias));
        b->n_no_bias += bias && l->bias.data == NULL;
    }
    return KRON_OK;
}

/* f8 has three bits of mantissa at most: enough for the many weights of a sum, not for a bias. */
static enum dtype out_type(const struct baking *b, const struct tensor *t)
{
    enum dtype want = dtype_of(b->job->params->type, t->type);
    bool f8 = want == DT_F8_E4M3 || want == DT_F8_E5M2;

    return !dtype_is_float(t->type) || (f8 && t->n_dims < 2) ? t->type : want;
}

static void plan(struct baking *b)
{
    const struct st_file *st = b->job->checkpoint;

    for (int64_t i = 0; i < st_count(st); i++) {
        b->out[i] = *st_at(st, i);
        b->out[i].type = out_type(b, st_at(st, i));
        b->out[i].bytes = dtype_bytes(b->out[i].type, tensor_elements(&b->out[i]));
        b->out[i].data = NULL;
    }
}

/* Numbers of x that are finite and have none in the type: these must not be lost in silence. */
static int64_t encode(enum dtype type, const float *x, int64_t n, void *bytes)
{
    enum { SOME = 1024 };
    struct tensor t = {.data = bytes, .type = type};
    int64_t lost = 0;
    float back[SOME];

    tensor_encode(type, x, n, bytes);
    for (int64_t at = 0; at < n; at += SOME) {
        int64_t m = n - at < SOME ? n - at : SOME;
        tensor_decode(&t, at, m, back);
        for (int64_t i = 0; i < m; i++)
            lost += !isfinite(back[i]) && isfinite(x[at + i]);
    }
    return lost;
}

static kron_status put_numbers(struct baking *b, const struct tensor *out, const float *x,
                               int64_t n)
{
    enum { CHUNK = 1 << 16, CHUNKS = 16 };
    int64_t lost = 0;
    char *bytes;

    KRON_TRY(mem_alloc((void **)&bytes, CHUNKS * dtype_bytes(out->type, CHUNK), "a tensor"));
    kron_status status = KRON_OK;
    for (int64_t at = 0; at < n && status == KRON_OK; at += CHUNKS * CHUNK) {
        int64_t all = n - at < CHUNKS * CHUNK ? n - at : CHUNKS * CHUNK;
#pragma omp parallel for reduction(+ : lost)
        for (int64_t i = 0; i < all; i += CHUNK)
            lost += encode(out->type, x + at + i, all - i < CHUNK ? all - i : CHUNK,
                           bytes + dtype_bytes(out->type, i));
        status = lost == 0 ? writer_put(&b->writer, bytes, dtype_bytes(out->type, all))
                           : err_set(KRON_ERR_ARGUMENT, "tensor '%s': %lld of its numbers are too "
                                     "large for %s", out->name, (long long)lost,
                                     dtype_info(out->type)->name);
    }
    mem_free(bytes);
    return status;
}

/* Where in t, of which x are the numbers, a layer's part begins. */
static float *place(const struct tensor *t, const struct tensor *part, float *x)
{
    size_t bytes = (size_t)((const char *)part->data - (const char *)t->data);

    return x + bytes / (size_t)dtype_info(t->type)->bytes;
}

static kron_status change(struct baking *b, int64_t i, float *x)
{
    const struct tensor *t = st_at(b->job->checkpoint, i);
    const struct delta_set *deltas = adapter_set_deltas(b->job->set);

    for (int id = b->weight.first[i]; id >= 0; id = b->weight.next[id]) {
        const struct layer *l = b->job->layers->at[id];
        KRON_TRY(effective_weight(l, delta_set_list(deltas, l), b->strengths,
                                  place(t, &l->weight, x)));
    }
    for (int id = b->bias.first[i]; id >= 0; id = b->bias.next[id]) {
        const struct layer *l = b->job->layers->at[id];
        effective_bias(delta_set_list(deltas, l), b->strengths, place(t, &l->bias, x));
    }
    return KRON_OK;
}

static kron_status put_tensor(struct baking *b, int64_t i)
{
    const struct tensor *t = st_at(b->job->checkpoint, i);
    bool changed = b->weight.first[i] >= 0 || b->bias.first[i] >= 0;
    float *x;

    if (t->bytes == 0)
        return KRON_OK;
    if (!changed && b->out[i].type == t->type)
        return writer_put(&b->writer, t->data, t->bytes);
    KRON_TRY(mem_floats(&x, tensor_elements(t), "a tensor"));
    tensor_decode(t, 0, tensor_elements(t), x);
    kron_status status = changed ? change(b, i, x) : KRON_OK;
    b->n_changed += changed;
    if (status == KRON_OK)
        status = put_numbers(b, &b->out[i], x, tensor_elements(t));
    mem_free(x);
    return status;
}

static kron_status write_all(struct baking *b)
{
    const struct st_file *st = b->job->checkpoint;
    struct metadata meta = {0};
    struct str made = {0};
    kron_status status = metadata_keep(&meta, st, NULL, 0);

    metadata_sources(b->job->uses, b->job->params->n_adapters, &made);
    if (status == KRON_OK && made.status != KRON_OK)
        status = made.status;
    if (status == KRON_OK && made.len > 0)
        status = metadata_add(&meta, "kron.baked", str_get(&made));
    if (status == KRON_OK)
        status = st_write_header(&b->writer, b->job->params->output, b->out, st_count(st), meta.at,
                                 meta.n);
    for (int64_t i = 0; i < st_count(st) && status == KRON_OK; i++)
        status = put_tensor(b, i);
    if (status == KRON_OK)
        status = writer_commit(&b->writer);
    writer_fini(&b->writer);
    metadata_free(&meta);
    str_free(&made);
    return status;
}

static kron_status holders_create(struct holders *h, const struct bake_job *job)
{
    KRON_TRY(mem_alloc_n((void **)&h->first, (size_t)st_count(job->checkpoint), sizeof *h->first,
                         "a checkpoint"));
    return mem_alloc_n((void **)&h->next, (size_t)job->layers->n, sizeof *h->next,
                       "a checkpoint");
}

static void holders_free(struct holders *h)
{
    mem_free(h->first);
    mem_free(h->next);
}

static kron_status run(struct baking *b)
{
    int64_t n = st_count(b->job->checkpoint);
    float *strengths;

    KRON_TRY(holders_create(&b->weight, b->job));
    KRON_TRY(holders_create(&b->bias, b->job));
    KRON_TRY(mem_alloc_n((void **)&b->out, (size_t)n, sizeof *b->out, "a checkpoint"));
    KRON_TRY(mem_floats(&strengths, adapter_set_deltas(b->job->set)->n_strengths, "strengths"));
    adapter_set_get_strengths(b->job->set, strengths);
    b->strengths = strengths;
    kron_status status = find_layers(b);
    if (status == KRON_OK && b->n_no_bias > 0 && b->job->params->strict)
        status = err_set(KRON_ERR_UNSUPPORTED, "%s: %d layers would need a bias, and have none",
                         st_path(b->job->checkpoint), b->n_no_bias);
    if (status == KRON_OK) {
        plan(b);
        status = write_all(b);
    }
    mem_free(strengths);
    return status;
}

kron_status bake(const struct bake_job *job, struct str *report)
{
    enum { SKIPS = 20 };
    struct baking b = {.job = job};
    double start = clock_seconds();
    kron_status status = run(&b);

    holders_free(&b.weight);
    holders_free(&b.bias);
    mem_free(b.out);
    KRON_TRY(status);
    for (int i = 0; i < adapter_set_count(job->set); i++)
        adapter_report_text(adapter_set_report(job->set, i), SKIPS, report);
    if (b.n_no_bias > 0)
        str_addf(report, "left out the bias of %d layers, which have none in the checkpoint\n",
                 b.n_no_bias);
    str_addf(report, "changed %d of %lld tensors in %.1f s\n", b.n_changed,
             (long long)st_count(job->checkpoint), clock_seconds() - start);
    return report->status;
}
