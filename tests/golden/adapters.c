/* SPDX-License-Identifier: MIT
 * adapters_ARCH: UNet, text encoders and whole runs with adapter files, alone and stacked. */
#include "golden.h"
#include <math.h>
#include <string.h>

/* What all UNet calls of a data set share. */
struct inputs {
    int64_t dim[4], n, tokens;
    float *x, *t, *context, *pooled, *sizes, *plain, *got_plain;
};

static kron_status call(struct session *s, const struct inputs *in, float *out)
{
    struct net_key key = {.kind = NET_UNET, .n = in->dim[0], .h = in->dim[2], .w = in->dim[3],
                          .tokens = in->tokens};

    return run_unet(s, &key, in->x, in->t, in->context, in->pooled, in->sizes, out);
}

static void inputs_free(struct inputs *in)
{
    mem_free(in->x);
    mem_free(in->t);
    mem_free(in->context);
    mem_free(in->pooled);
    mem_free(in->sizes);
    mem_free(in->plain);
    mem_free(in->got_plain);
}

/* Every sample of the batch gets the data set's one context. */
static float *repeat(const struct st_file *f, const char *part, int64_t samples)
{
    const struct tensor *t = find(f, "", part);
    int64_t n = tensor_elements(t), has = t->dim[0];
    float *one = get(f, "", part, NULL), *all = floats(n / has * samples);

    for (int64_t i = 0; i < samples; i++)
        memcpy(all + i * (n / has), one + (has > 1 ? i : 0) * (n / has),
               (size_t)(n / has) * sizeof *all);
    mem_free(one);
    return all;
}

static void inputs_read(struct inputs *in, struct session *s, const struct st_file *f)
{
    bool xl = s->e->model.unet.pooled_width > 0;
    int64_t dim[4];

    memset(in, 0, sizeof *in);
    in->x = get_nhwc(f, "", "x", in->dim);
    in->n = in->dim[0] * in->dim[1] * in->dim[2] * in->dim[3];
    in->t = repeat(f, "t", in->dim[0]);
    in->context = repeat(f, "context", in->dim[0]);
    in->tokens = find(f, "", "context")->dim[1];
    in->pooled = xl ? repeat(f, "pooled", in->dim[0]) : NULL;
    in->sizes = xl ? repeat(f, "time_ids", in->dim[0]) : NULL;
    in->plain = get_nhwc(f, "", "out_plain", dim);
    in->got_plain = floats(in->n);
}

/* False with the reason printed if the files hold what this version leaves out. */
static bool all_applied(struct golden *g, struct session *s, const char *name)
{
    for (int i = 0; i < adapter_set_count(s->set); i++) {
        const struct adapter_report *r = adapter_set_report(s->set, i);
        for (int k = 0; k < r->n_skips; k++) {
            if (r->skips[k].why == ADAPTER_SKIP_FAMILY) {
                skip(g, name, r->skips[k].text);
                return false;
            }
        }
    }
    return true;
}

static bool bind(struct golden *g, struct session *s, const char *name, const char *const *files,
                 const double *strengths, size_t n)
{
    kron_status status = bind_files(g, s, files, strengths, n);

    if (status == KRON_ERR_UNSUPPORTED)
        skip(g, name, kron_error_detail());
    else if (status != KRON_OK)
        broken(g, name);
    return status == KRON_OK && all_applied(g, s, name);
}

static void check_out(struct golden *g, struct session *s, const struct inputs *in,
                      const struct st_file *f, const char *name, const char *label)
{
    int64_t dim[4];
    float *want = get_nhwc(f, name, "out", dim), *got = floats(in->n);
    char change[160];

    if (call(s, in, got) != KRON_OK) {
        broken(g, label);
    } else {
        result(g, label, rel(got, want, in->n), BOUND_MODULE);
        snprintf(change, sizeof change, "%s/change", label);
        result(g, change, rel_change(got, in->got_plain, want, in->plain, in->n),
               10 * BOUND_MODULE);
    }
    mem_free(want);
    mem_free(got);
}

static void check_text(struct golden *g, struct session *s, const struct st_file *f,
                       const char *prompt, const char *name)
{
    struct condition c;
    char label[160];
    int64_t n;

    if (find(f, name, "context") == NULL)
        return;
    snprintf(label, sizeof label, "%s/context", name);
    if (encode_text(s, prompt, 0, &c) != KRON_OK) {
        broken(g, label);
        return;
    }
    float *want = get(f, name, "context", &n);
    result(g, label, rel(c.context, want, n), BOUND_MODULE);
    mem_free(want);
    if (c.pooled != NULL && find(f, name, "pooled") != NULL) {
        snprintf(label, sizeof label, "%s/pooled", name);
        want = get(f, name, "pooled", &n);
        result(g, label, rel(c.pooled, want, n), BOUND_MODULE);
        mem_free(want);
    }
    condition_free(&c);
}

static void check_one(struct golden *g, struct session *s, const struct inputs *in,
                      const struct st_file *f, const json_t *man, const json_t *row)
{
    const char *name = text_of(row, "name"), *file = text_of(row, "file");
    double strength = number_of(row, "strength");
    char label[160];

    if (!bind(g, s, name, &file, &strength, 1))
        return;
    snprintf(label, sizeof label, "%s/layers", name);
    result(g, label, fabs(adapter_set_report(s->set, 0)->n_applied - number_of(row, "layers")), 0);
    check_out(g, s, in, f, name, name);
    check_text(g, s, f, text_of(man, "prompt"), name);
}

static bool bind_list(struct golden *g, struct session *s, const char *name, const json_t *row)
{
    const json_t *files = json_object_get(row, "files");
    const json_t *strengths = json_object_get(row, "strengths");
    const char *names[8];
    double s8[8];
    size_t n = json_array_size(files);

    for (size_t i = 0; i < n && i < 8; i++) {
        names[i] = json_string_value(json_array_get(files, i));
        s8[i] = json_number_value(json_array_get(strengths, i));
    }
    return bind(g, s, name, names, s8, n < 8 ? n : 8);
}

static void all_cases(struct golden *g, struct session *s, const struct st_file *f,
                      const json_t *man)
{
    struct inputs in;
    const json_t *row;
    size_t i;

    inputs_read(&in, s, f);
    if (call(s, &in, in.got_plain) != KRON_OK)
        broken(g, "out_plain");
    else
        result(g, "out_plain", rel(in.got_plain, in.plain, in.n), BOUND_MODULE);
    json_array_foreach(json_object_get(man, "adapters"), i, row)
        check_one(g, s, &in, f, man, row);
    json_array_foreach(json_object_get(man, "stacks"), i, row)
        if (bind_list(g, s, text_of(row, "name"), row)) {
            check_out(g, s, &in, f, text_of(row, "name"), text_of(row, "name"));
            check_text(g, s, f, text_of(man, "prompt"), text_of(row, "name"));
        }
    json_array_foreach(json_object_get(man, "namings"), i, row)
    {
        const char *file = text_of(row, "file");
        double strength = number_of(row, "strength");
        if (bind(g, s, file, &file, &strength, 1))
            check_out(g, s, &in, f, text_of(row, "name"), file);
    }
    json_array_foreach(json_object_get(man, "runs"), i, row)
        if (bind_list(g, s, text_of(row, "name"), row))
            check_run(g, s, f, row, "run");
    inputs_free(&in);
}

void golden_adapters(struct golden *g, const char *arch)
{
    static const struct {
        kron_apply apply;
        const char *name;
    } modes[] = {{KRON_APPLY_AUTO, "auto"},
                 {KRON_APPLY_AT_RUNTIME, "at_runtime"},
                 {KRON_APPLY_IMMEDIATELY, "immediately"}};
    struct data_set d;

    for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
        if (!open_set(g, &d, "adapters", arch, modes[m].apply))
            return;
        printf("# %s\n", modes[m].name);
        all_cases(g, d.l.s, d.tensors, d.manifest);
        close_set(&d);
    }
}
