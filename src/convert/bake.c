/* SPDX-License-Identifier: MIT
 * A checkpoint in another format or type, with adapters baked in, tensor by tensor. */
#include "adapter/product.h"
#include "convert/convert.h"
#include "convert/metadata.h"
#include <stdlib.h>

struct baking {
    const struct bake_job *job;
    const float *strengths;
    struct tensor *in; /* views; n of them */
    int64_t n;
    const struct tensor **order; /* the same by the place of their data */
    /* Layers with deltas by the tensor that holds their weight, or bias; -1: no (more) layer. */
    struct holders {
        int *first, *next;
    } weight, bias;
    int n_no_bias; /* layers whose bias would change and that have none */
    struct tensor *out; /* the header's */
    struct type_rules rules;
    struct importance *importance; /* NULL: none */
    struct file_writer writer;
    bool gguf;
    int n_changed, n_retyped;
    uint64_t done, all; /* bytes of the output */
};

static int by_place(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)(*(const struct tensor *const *)a)->data;
    uintptr_t y = (uintptr_t)(*(const struct tensor *const *)b)->data;

    return x < y ? -1 : x > y;
}

/* The tensor of the checkpoint that a layer's weight or bias is, or lies in; -1: of none. */
static int64_t tensor_of(const struct baking *b, const struct tensor *part)
{
    int64_t low = 0, high = b->n - 1;

    while (low < high) {
        int64_t mid = (low + high + 1) / 2;
        if ((uintptr_t)b->order[mid]->data <= (uintptr_t)part->data)
            low = mid;
        else
            high = mid - 1;
    }
    const struct tensor *t = b->order[low];
    uintptr_t begin = (uintptr_t)t->data, at = (uintptr_t)part->data;
    return at >= begin && at + part->bytes <= begin + t->bytes ? t - b->in : -1;
}

static const char *path_of(const struct baking *b)
{
    return b->job->checkpoint != NULL ? st_path(b->job->checkpoint) : b->job->params->model;
}

static kron_status hold(const struct baking *b, struct holders *h, const struct layer *l,
                        const struct tensor *part)
{
    int64_t t = b->n > 0 ? tensor_of(b, part) : -1;

    if (t < 0)
        return err_set(KRON_ERR_UNSUPPORTED, "%s: the layer %s is not in this file", path_of(b),
                       l->name);
    h->next[l->id] = h->first[t];
    h->first[t] = l->id;
    return KRON_OK;
}

static kron_status find_layers(struct baking *b)
{
    const struct layer_table *layers = b->job->layers;

    for (int64_t i = 0; i < b->n; i++)
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

/* GGUF has no f8: f16 holds all of its numbers. No file has f8 with scales here: it counts as
 * the f16 that is written where nothing else is asked for. */
static enum dtype out_type(const struct baking *b, const struct tensor *in)
{
    struct tensor own = *in;
    const struct tensor *t = &own;
    if (t->scale != NULL)
        own.type = DT_F16;
    enum dtype type = type_rules_choose(&b->rules, b->job->params->type, t);
    bool f8 = type == DT_F8_E4M3 || type == DT_F8_E5M2;

    return b->gguf && f8 && type == t->type ? DT_F16 : type;
}

static void plan(struct baking *b)
{
    for (int64_t i = 0; i < b->n; i++) {
        b->out[i] = b->in[i];
        b->out[i].type = out_type(b, &b->in[i]);
        b->out[i].bytes = dtype_bytes(b->out[i].type, tensor_elements(&b->out[i]));
        b->out[i].data = NULL;
        b->out[i].scale = NULL;
        b->all += b->out[i].bytes;
    }
}

/* Where in t, of which x are the numbers, a layer's part begins. */
static float *place(const struct tensor *t, const struct tensor *part, float *x)
{
    size_t bytes = (size_t)((const char *)part->data - (const char *)t->data);

    const struct dtype_info *info = dtype_info(t->type);

    return x + bytes / (size_t)info->bytes * (size_t)info->block + part->skip;
}

static kron_status change(struct baking *b, int64_t i, float *x)
{
    const struct tensor *t = &b->in[i];
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

/* x: the changed numbers, or NULL. */
static kron_status put_recoded(struct baking *b, int64_t i, const float *x)
{
    struct tensor t = b->in[i];
    void *bytes;

    if (x != NULL) {
        t.type = DT_F32;
        t.data = x;
        t.scale = NULL;
        t.bytes = dtype_bytes(DT_F32, tensor_elements(&t));
    }
    KRON_TRY(mem_alloc(&bytes, b->out[i].bytes, "a tensor"));
    kron_status status = recode(&t, b->out[i].type, b->importance, bytes);
    if (status == KRON_OK)
        status = writer_put(&b->writer, bytes, b->out[i].bytes);
    mem_free(bytes);
    return status;
}

static kron_status put_changed(struct baking *b, int64_t i)
{
    int64_t n = tensor_elements(&b->in[i]);
    float *x;

    KRON_TRY(mem_floats(&x, n, "a tensor"));
    tensor_decode(&b->in[i], 0, n, x);
    kron_status status = change(b, i, x);
    b->n_changed++;
    if (status == KRON_OK)
        status = put_recoded(b, i, x);
    mem_free(x);
    return status;
}

static kron_status put_tensor(struct baking *b, int64_t i)
{
    const struct tensor *t = &b->in[i];

    if (t->bytes == 0)
        return KRON_OK;
    if (b->weight.first[i] >= 0 || b->bias.first[i] >= 0)
        return put_changed(b, i);
    if (b->out[i].type == t->type && t->scale == NULL)
        return writer_put(&b->writer, t->data, t->bytes);
    b->n_retyped++;
    return put_recoded(b, i, NULL);
}

static kron_status tell(const struct baking *b)
{
    const kron_convert_params *p = b->job->params;

    if (p->progress != NULL && p->progress(b->done, b->all, p->progress_user) != 0)
        return err_set(KRON_ERR_CANCELLED, "%s: stopped", p->output);
    return KRON_OK;
}

static kron_status write_tensors(struct baking *b)
{
    KRON_TRY(tell(b));
    for (int64_t i = 0; i < b->n; i++) {
        KRON_TRY(put_tensor(b, i));
        if (b->gguf)
            KRON_TRY(gguf_write_padding(&b->writer, b->out[i].bytes));
        b->done += b->out[i].bytes;
        KRON_TRY(tell(b));
    }
    return writer_commit(&b->writer);
}

static kron_status write_header(struct baking *b)
{
    const struct bake_job *job = b->job;
    struct metadata meta = {0};
    struct str made = {0};
    kron_status status =
        job->checkpoint != NULL ? metadata_keep(&meta, job->checkpoint, NULL, 0) : KRON_OK;

    metadata_sources(job->uses, job->params->n_adapters, &made);
    if (status == KRON_OK && made.status != KRON_OK)
        status = made.status;
    if (status == KRON_OK && made.len > 0)
        status = metadata_add(&meta, "kron.baked", str_get(&made));
    for (int64_t i = 0; i < job->n_meta && status == KRON_OK; i++)
        status = metadata_add(&meta, job->meta[2 * i], job->meta[2 * i + 1]);
    if (status == KRON_OK)
        status = (b->gguf ? gguf_write_header : st_write_header)(
            &b->writer, job->params->output, b->out, b->n, meta.at, meta.n);
    metadata_free(&meta);
    str_free(&made);
    return status;
}

static kron_status holders_create(struct holders *h, const struct baking *b)
{
    KRON_TRY(mem_alloc_n((void **)&h->first, (size_t)b->n, sizeof *h->first, "a checkpoint"));
    return mem_alloc_n((void **)&h->next, (size_t)b->job->layers->n, sizeof *h->next,
                       "a checkpoint");
}

static void holders_free(struct holders *h)
{
    mem_free(h->first);
    mem_free(h->next);
}

static kron_status open_tensors(struct baking *b)
{
    const struct bake_job *job = b->job;

    b->n = job->tensors != NULL ? job->n_tensors : st_count(job->checkpoint);
    KRON_TRY(mem_alloc_n((void **)&b->in, (size_t)b->n, sizeof *b->in, "a checkpoint"));
    KRON_TRY(mem_alloc_n((void **)&b->out, (size_t)b->n, sizeof *b->out, "a checkpoint"));
    KRON_TRY(mem_alloc_n((void **)&b->order, (size_t)b->n, sizeof *b->order, "a checkpoint"));
    for (int64_t i = 0; i < b->n; i++) {
        b->in[i] = job->tensors != NULL ? job->tensors[i] : *st_at(job->checkpoint, i);
        b->order[i] = &b->in[i];
    }
    qsort((void *)b->order, (size_t)b->n, sizeof *b->order, by_place);
    KRON_TRY(holders_create(&b->weight, b));
    return holders_create(&b->bias, b);
}

static kron_status open_types(struct baking *b)
{
    const kron_convert_params *p = b->job->params;

    KRON_TRY(type_rules_parse(&b->rules, p->type_rules));
    if (p->importance == NULL)
        return KRON_OK;
    KRON_TRY(importance_create(&b->importance));
    return importance_read(b->importance, p->importance);
}

static kron_status write_all(struct baking *b)
{
    plan(b);
    writer_clear_left(b->job->params->output);
    kron_status status = write_header(b);
    if (status == KRON_OK)
        status = write_tensors(b);
    writer_fini(&b->writer);
    return status;
}

static kron_status run(struct baking *b)
{
    float *strengths;

    KRON_TRY(open_types(b));
    KRON_TRY(open_tensors(b));
    KRON_TRY(mem_floats(&strengths, adapter_set_deltas(b->job->set)->n_strengths, "strengths"));
    adapter_set_get_strengths(b->job->set, strengths);
    b->strengths = strengths;
    kron_status status = find_layers(b);
    if (status == KRON_OK && b->n_no_bias > 0 && b->job->params->strict)
        status = err_set(KRON_ERR_UNSUPPORTED, "%s: %d layers would need a bias, and have none",
                         path_of(b), b->n_no_bias);
    if (status == KRON_OK)
        status = write_all(b);
    mem_free(strengths);
    return status;
}

kron_status bake(const struct bake_job *job, struct str *report)
{
    enum { SKIPS = 20 };
    struct baking b = {.job = job, .gguf = str_ends(job->params->output, ".gguf")};
    double start = clock_seconds();
    kron_status status = run(&b);

    holders_free(&b.weight);
    holders_free(&b.bias);
    mem_free(b.in);
    mem_free(b.out);
    mem_free((void *)b.order);
    type_rules_free(&b.rules);
    importance_free(&b.importance);
    KRON_TRY(status);
    for (int i = 0; i < adapter_set_count(job->set); i++)
        adapter_report_text(adapter_set_report(job->set, i), SKIPS, report);
    if (b.n_no_bias > 0)
        str_addf(report, "left out the bias of %d layers, which have none in the checkpoint\n",
                 b.n_no_bias);
    if (b.n_retyped > 0)
        str_addf(report, "another type for %d tensors\n", b.n_retyped);
    str_addf(report, "changed %d of %lld tensors in %.1f s\n", b.n_changed, (long long)b.n,
             clock_seconds() - start);
    return report->status;
}
