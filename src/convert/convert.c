/* SPDX-License-Identifier: MIT
 * One adapter from one or several: gather tensors, write, open again and compare, rename. */
#include "convert/convert.h"
#include "adapter/family.h"
#include "convert/carry.h"
#include "convert/form.h"
#include "convert/metadata.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct converting {
    const struct convert_job *job;
    const struct layer_table *layers;
    struct adapter_set *set;  /* the inputs; NULL where tensors are carried over unbound */
    float *strengths;
    const char **prefix;      /* by layer: what the first input that has it calls it */
    enum dtype type;          /* of factors that are made anew */
    struct out_tensors out;
    enum form *form;          /* by layer: what was made */
    struct out_tensors *made; /* by layer */
    struct file_writer writer;
};

/* Only names and types are asked for: nothing has to be worked out. */
static bool is_carried(const struct convert_job *job)
{
    const kron_adapter_convert_params *p = job->params;

    return p->n_inputs == 1 && job->uses[0].te_strength == 1 && job->uses[0].unet_strength == 1 &&
           p->form == KRON_FORM_KEEP && p->rank == 0 && p->energy <= 0 && p->factor == 0;
}

/* --- carried over --- */

static kron_status carry_all(struct converting *c, struct str *report)
{
    const kron_adapter_convert_params *p = c->job->params;
    const struct adapter_file *f = c->job->uses[0].file;
    struct str prefix = {0};
    kron_status status = KRON_OK;

    for (int i = 0; i < adapter_count(f) && status == KRON_OK; i++) {
        struct adapter_match m = adapter_names_find(c->job->names, adapter_prefix(f, i),
                                                    module_width(&f->modules[i]));
        kron_naming naming = m.found == ADAPTER_FOUND ? p->naming : KRON_NAMING_KEEP;
        prefix.len = 0;
        if (naming == KRON_NAMING_KEEP)
            str_add(&prefix, adapter_prefix(f, i));
        else
            status = naming_prefix(c->job->names, naming, m.layer, &prefix);
        if (naming != p->naming)
            str_addf(report, "kept its name: %s (no layer of the model)\n", adapter_prefix(f, i));
        if (status == KRON_OK)
            status = prefix.status;
        if (status == KRON_OK)
            status = carry_module(f, i, str_get(&prefix), naming, p->type, &c->out);
    }
    str_free(&prefix);
    return status == KRON_OK ? carry_rest(f, &c->out) : status;
}

/* --- made anew --- */

static kron_status put_alpha(struct out_tensors *o, const char *prefix, const struct made *m)
{
    float alpha = (float)(m->scale * (double)m->rank);

    return out_numbers(o, prefix, ".alpha", DT_F32, 0, NULL, &alpha);
}

static void multiply(float *x, int64_t n, double by)
{
    for (int64_t i = 0; i < n && by != 1; i++)
        x[i] = (float)(x[i] * by);
}

static kron_status put_lora(struct out_tensors *o, const char *prefix, kron_naming naming,
                            enum dtype type, const struct layer *l, struct made *m)
{
    bool diffusers = naming == KRON_NAMING_DIFFUSERS;
    int n = l->is_conv ? 4 : 2;

    if (diffusers)
        multiply(m->a, l->out * m->rank, m->scale);
    else
        KRON_TRY(put_alpha(o, prefix, m));
    KRON_TRY(out_numbers(o, prefix, diffusers ? ".lora_A.weight" : ".lora_down.weight", type, n,
                         (int64_t[]){m->rank, l->in, l->kh, l->kw}, m->b));
    return out_numbers(o, prefix, diffusers ? ".lora_B.weight" : ".lora_up.weight", type, n,
                       (int64_t[]){l->out, m->rank, 1, 1}, m->a);
}

static kron_status put_loha(struct out_tensors *o, const char *prefix, enum dtype type,
                            const struct layer *l, const struct made *m)
{
    const int64_t left[] = {l->out, m->rank}, right[] = {m->rank, layer_k(l)};

    KRON_TRY(put_alpha(o, prefix, m));
    KRON_TRY(out_numbers(o, prefix, ".hada_w1_a", type, 2, left, m->a));
    KRON_TRY(out_numbers(o, prefix, ".hada_w1_b", type, 2, right, m->b));
    KRON_TRY(out_numbers(o, prefix, ".hada_w2_a", type, 2, left, m->c));
    return out_numbers(o, prefix, ".hada_w2_b", type, 2, right, m->d);
}

/* The alpha of a whole pair counts nowhere: its scale goes into w1. */
static kron_status put_lokr(struct out_tensors *o, const char *prefix, enum dtype type,
                            const struct layer *l, struct made *m)
{
    int64_t ks = (int64_t)l->kh * l->kw;

    if (m->rank > 0)
        KRON_TRY(put_alpha(o, prefix, m));
    else
        multiply(m->w1, m->up * m->uq, m->scale);
    KRON_TRY(out_numbers(o, prefix, ".lokr_w1", type, 2, (int64_t[]){m->up, m->uq}, m->w1));
    if (m->rank == 0)
        return out_numbers(o, prefix, ".lokr_w2", type, l->is_conv ? 4 : 2,
                           (int64_t[]){m->vp, m->m / ks, l->kh, l->kw}, m->w2);
    KRON_TRY(out_numbers(o, prefix, ".lokr_w2_a", type, 2, (int64_t[]){m->vp, m->rank}, m->a));
    return out_numbers(o, prefix, ".lokr_w2_b", type, 2, (int64_t[]){m->rank, m->m}, m->b);
}

static kron_status put_made(const struct converting *c, const struct layer *l, struct made *m,
                            struct out_tensors *o)
{
    kron_naming naming = c->job->params->naming;
    bool norm = l->kind == LAYER_NORM;
    struct str prefix = {0};
    kron_status status = KRON_OK;

    if (naming == KRON_NAMING_KEEP && c->prefix[l->id] != NULL)
        str_add(&prefix, c->prefix[l->id]);
    else /* KEEP: a name of several layers has none for each; kohya's has */
        status = naming_prefix(c->job->names, naming == KRON_NAMING_KEEP ? KRON_NAMING_KOHYA
                                                                         : naming, l, &prefix);
    const char *name = str_get(&prefix);
    if (status == KRON_OK)
        status = prefix.status;
    if (status == KRON_OK && m->form == FORM_LORA)
        status = put_lora(o, name, naming, c->type, l, m);
    else if (status == KRON_OK && m->form == FORM_LOHA)
        status = put_loha(o, name, c->type, l, m);
    else if (status == KRON_OK && m->form == FORM_LOKR)
        status = put_lokr(o, name, c->type, l, m);
    else if (status == KRON_OK && m->form == FORM_FULL)
        status = out_numbers(o, name, norm ? ".w_norm" : ".diff", c->type,
                             norm         ? 1
                             : l->is_conv ? 4
                                          : 2,
                             (int64_t[]){l->out, l->in, l->kh, l->kw}, m->full);
    if (status == KRON_OK && m->bias != NULL)
        status = out_numbers(o, name, norm ? ".b_norm" : ".diff_b", c->type, 1, &l->out, m->bias);
    str_free(&prefix);
    return status;
}

/* The first failure of several threads, with its sentence, which only its own thread has. Read
 * when they have ended. */
struct failure {
    bool taken;
    kron_status status;
    char text[400];
};

static void fail(struct failure *f, kron_status status)
{
    if (__atomic_exchange_n(&f->taken, true, __ATOMIC_RELAXED))
        return;
    f->status = status;
    snprintf(f->text, sizeof f->text, "%s", kron_error_detail());
}

static kron_status make_layer(struct converting *c, int i)
{
    const kron_adapter_convert_params *p = c->job->params;
    const struct form_want want = {p->form, p->rank, p->energy, p->factor};
    const struct layer *l = c->layers->at[i];
    struct delta_list list = delta_set_list(adapter_set_deltas(c->set), l);
    struct made m;

    if (list.n == 0)
        return KRON_OK;
    KRON_TRY(form_make(l, list, c->strengths, &want, &m));
    c->form[i] = m.form;
    kron_status status = put_made(c, l, &m, &c->made[i]);
    made_free(&m);
    return status;
}

static kron_status make_all(struct converting *c)
{
    struct failure f = {.status = KRON_OK};

#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < c->layers->n; i++) {
        kron_status status = make_layer(c, i);
        if (status != KRON_OK)
            fail(&f, status);
    }
    return f.status != KRON_OK ? err_set(f.status, "%s", f.text) : KRON_OK;
}

static kron_status collect(struct converting *c)
{
    for (int i = 0; i < c->layers->n; i++)
        for (size_t k = 0; k < c->made[i].n; k++)
            KRON_TRY(out_view(&c->out, c->made[i].at[k].name, &c->made[i].at[k]));
    if (c->out.n == 0)
        return err_set(KRON_ERR_ARGUMENT, "nothing is left to write: every strength is 0");
    for (int i = 0; i < c->job->params->n_inputs; i++)
        for (int64_t k = 0; k < st_count(c->job->uses[i].file->st); k++) {
            const struct tensor *t = st_at(c->job->uses[i].file->st, k);
            if (embedding_bundled(t->name))
                KRON_TRY(out_view(&c->out, t->name, t));
        }
    return KRON_OK;
}

/* What a new form leaves no room for is no small loss: it has to be asked for. */
static kron_status check_skips(const struct converting *c, struct str *report)
{
    for (int i = 0; i < adapter_set_count(c->set); i++) {
        const struct adapter_report *r = adapter_set_report(c->set, i);
        for (int k = 0; k < r->n_skips; k++) {
            if (r->skips[k].why == ADAPTER_SKIP_FAMILY)
                return err_set(KRON_ERR_UNSUPPORTED, "%s: %s: %s", r->path, r->skips[k].name,
                               r->skips[k].text);
            str_addf(report, "left out %s: %s\n", r->skips[k].name, r->skips[k].text);
        }
    }
    return report->status;
}

static void find_prefixes(struct converting *c)
{
    for (int i = 0; i < c->job->params->n_inputs; i++) {
        const struct adapter_file *f = c->job->uses[i].file;
        for (int k = 0; k < adapter_count(f); k++) {
            struct adapter_match m = adapter_names_find(c->job->names, adapter_prefix(f, k),
                                                        module_width(&f->modules[k]));
            /* A name that stands for rows of one or several layers is no layer's own. */
            if (m.found == ADAPTER_FOUND && m.n_targets == 1 && m.targets[0].layer == m.layer &&
                c->prefix[m.layer->id] == NULL)
                c->prefix[m.layer->id] = adapter_prefix(f, k);
        }
    }
}

/* The type that all factors of the first input have, else f32. */
static enum dtype first_type(const struct converting *c)
{
    struct adapter_summary s;
    enum dtype keep = DT_F32;

    adapter_summarise(c->job->uses[0].file, &s);
    for (int t = 0; t < DT_COUNT; t++)
        if (s.types == 1u << t && dtype_is_float((enum dtype)t) && t != DT_F64)
            keep = (enum dtype)t;
    return dtype_of(c->job->params->type, keep);
}

static kron_status make_anew(struct converting *c, struct str *report)
{
    KRON_TRY(check_skips(c, report));
    find_prefixes(c);
    c->type = first_type(c);
    KRON_TRY(make_all(c));
    return collect(c);
}

/* --- writing --- */

static kron_status write_file(struct converting *c, bool carried)
{
    /* What the numbers made anew would make false. */
    static const char *const gone[] = {"lora_adapter_metadata", "ss_network_module",
                                       "ss_network_args", "ss_network_dim", "ss_network_alpha"};
    const kron_adapter_convert_params *p = c->job->params;
    const struct st_file *first = c->job->uses[0].file->st;
    struct metadata meta = {0};
    struct str made = {0};
    const char *before = st_meta(first, "kron.made_from");
    kron_status status =
        metadata_keep(&meta, first, gone, carried ? 1 : sizeof gone / sizeof *gone);

    metadata_sources(c->job->uses, p->n_inputs, &made);
    if (before != NULL)
        str_addf(&made, " (%s)", before);
    if (status == KRON_OK)
        status = made.status;
    if (status == KRON_OK)
        status = metadata_add(&meta, "kron.made_from", str_get(&made));
    if (status == KRON_OK && st_meta(first, "format") == NULL)
        status = metadata_add(&meta, "format", "pt");
    if (status == KRON_OK)
        status = st_write_header(&c->writer, p->output, c->out.at, (int64_t)c->out.n, meta.at,
                                 meta.n);
    for (size_t i = 0; i < c->out.n && status == KRON_OK; i++)
        status = writer_put(&c->writer, c->out.at[i].data, c->out.at[i].bytes);
    metadata_free(&meta);
    str_free(&made);
    return status;
}

/* --- holding it against what was asked for --- */

struct distance {
    double rel, size; /* of the change asked for */
    bool known;
};

static int by_rel(const void *a, const void *b)
{
    const struct distance *x = a, *y = b;

    return (x->rel > y->rel) - (x->rel < y->rel);
}

static kron_status measure(struct converting *c, const struct adapter_set *written,
                           const float *strengths, struct distance *d)
{
    const struct delta_set *want = adapter_set_deltas(c->set), *got = adapter_set_deltas(written);
    struct failure f = {.status = KRON_OK};

#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < c->layers->n; i++) {
        const struct layer *l = c->layers->at[i];
        struct delta_list x = delta_set_list(got, l), y = delta_set_list(want, l);
        kron_status status = KRON_OK;
        if (x.n == 0 && y.n == 0)
            continue;
        status = change_distance(l, x, strengths, y, c->strengths, &d[i].rel, &d[i].size);
        d[i].known = status == KRON_OK;
        if (status != KRON_OK && status != KRON_ERR_UNSUPPORTED)
            fail(&f, status);
    }
    return f.status != KRON_OK ? err_set(f.status, "%s", f.text) : KRON_OK;
}

static void report_layers(const struct converting *c, const struct distance *d,
                          struct str *report)
{
    static const char *const part[] = {"unet", "text encoder", "text encoder 2", "vae"};

    for (int i = 0; i < c->layers->n; i++) {
        const struct layer *l = c->layers->at[i];
        if (!d[i].known)
            continue;
        str_addf(report, "%s %s: ", part[l->part], l->name);
        if (c->form[i] != FORM_NONE)
            str_addf(report, "%s, ", form_text(c->form[i]));
        str_addf(report, "off by %.3g\n", d[i].rel);
    }
}

static void report_sum(const struct converting *c, struct distance *d, struct str *report)
{
    double off = 0, all = 0;
    int n = 0;

    for (int i = 0; i < c->layers->n; i++)
        if (d[i].known) {
            off += d[i].rel * d[i].rel * d[i].size * d[i].size;
            all += d[i].size * d[i].size;
            d[n++] = d[i];
        }
    qsort(d, (size_t)n, sizeof *d, by_rel);
    if (n > 0)
        str_addf(report, "%d layers, off by %.3g of the whole change; median %.3g, most %.3g\n", n,
                 all > 0 ? sqrt(off / all) : 0, d[n / 2].rel, d[n - 1].rel);
    else
        str_add(report, "tensors were carried over; their families are not worked out here\n");
}

static kron_status compare(struct converting *c, struct str *report)
{
    struct adapter_file *f;
    struct adapter_set *written = NULL;
    struct distance *d = NULL;
    float *strengths = NULL;

    KRON_TRY(adapter_open(&f, c->writer.temp));
    struct adapter_use use = {f, 1, 1};
    kron_status status = adapter_bind(&written, &use, 1, c->job->names, false);
    if (status == KRON_OK)
        status = mem_alloc_n((void **)&d, (size_t)c->layers->n, sizeof *d, "distances");
    if (status == KRON_OK)
        status = mem_floats(&strengths, adapter_set_deltas(written)->n_strengths, "strengths");
    if (status == KRON_OK) {
        adapter_set_get_strengths(written, strengths);
        status = measure(c, written, strengths, d);
    }
    if (status == KRON_OK) {
        report_layers(c, d, report);
        report_sum(c, d, report);
    }
    mem_free(d);
    mem_free(strengths);
    adapter_set_free(&written);
    adapter_close(&f);
    return status;
}

/* --- all together --- */

static kron_status prepare(struct converting *c, bool carried)
{
    size_t n = (size_t)c->layers->n;

    KRON_TRY(mem_alloc_n((void **)&c->prefix, n, sizeof *c->prefix, "layers"));
    KRON_TRY(mem_alloc_n((void **)&c->form, n, sizeof *c->form, "layers"));
    KRON_TRY(mem_alloc_n((void **)&c->made, n, sizeof *c->made, "layers"));
    kron_status status = adapter_bind(&c->set, c->job->uses, c->job->params->n_inputs,
                                      c->job->names, false);
    if (status == KRON_ERR_UNSUPPORTED && carried)
        return KRON_OK; /* nothing of it can be worked out: then nothing is compared */
    KRON_TRY(status);
    KRON_TRY(mem_floats(&c->strengths, adapter_set_deltas(c->set)->n_strengths, "strengths"));
    adapter_set_get_strengths(c->set, c->strengths);
    return KRON_OK;
}

static kron_status run(struct converting *c, struct str *report)
{
    bool carried = is_carried(c->job);

    KRON_TRY(prepare(c, carried));
    KRON_TRY(carried ? carry_all(c, report) : make_anew(c, report));
    KRON_TRY(write_file(c, carried));
    if (c->set != NULL)
        KRON_TRY(compare(c, report));
    KRON_TRY(report->status);
    return writer_commit(&c->writer);
}

kron_status convert_adapter(const struct convert_job *job, struct str *report)
{
    struct converting c = {.job = job, .layers = names_layers(job->names)};
    kron_status status = run(&c, report);

    writer_fini(&c.writer);
    for (int i = 0; c.made != NULL && i < c.layers->n; i++)
        out_free(&c.made[i]);
    out_free(&c.out);
    mem_free(c.made);
    mem_free(c.form);
    mem_free(c.prefix);
    mem_free(c.strengths);
    adapter_set_free(&c.set);
    return status;
}
