/* SPDX-License-Identifier: MIT
 * modules_ARCH: text encoders, UNet and VAE, each alone. */
#include "golden.h"
#include <math.h>
#include <string.h>

/* Hidden states of one encoder, and what it pools. */
static void check_encoder(struct golden *g, struct session *s, const struct st_file *f,
                          const char *name, int te)
{
    const struct clip *c = &s->e->model.te[te];
    char part[64], label[128];
    int64_t n;
    snprintf(part, sizeof part, "te%d/ids", te);
    float *raw = get(f, name, part, &n);
    int32_t *ids = (int32_t *)floats(n);
    struct net_key key = {.kind = NET_TE0 + (unsigned)te, .n = n / 77, .taps = true};
    struct net *net;
    double most = 0;

    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)raw[i];
    snprintf(label, sizeof label, "%s/te%d/hidden", name, te);
    if (net_get(s, &key, &net) != KRON_OK || net_write(net, "ids", ids, n) != KRON_OK ||
        net_run(s, net) != KRON_OK) {
        broken(g, label);
    } else {
        float *got = floats(n * c->width);
        for (int k = 0; k <= c->n_layers; k++) {
            int64_t m;
            char tap[32];
            snprintf(tap, sizeof tap, "hidden%d", k);
            snprintf(part, sizeof part, "te%d/%s", te, tap);
            float *want = get(f, name, part, &m);
            net_read(net, tap, got, m);
            most = fmax(most, rel(got, want, m));
            mem_free(want);
        }
        result(g, label, most, BOUND_MODULE);
        mem_free(got);
    }
    mem_free(raw);
    mem_free(ids);
}

static void check_context(struct golden *g, struct session *s, const struct st_file *f,
                          const json_t *row, int skip)
{
    const char *name = text_of(row, "name");
    struct condition c;
    char part[32] = "context", label[128];
    int64_t n;

    if (skip > 0)
        snprintf(part, sizeof part, "context_skip%d", skip);
    snprintf(label, sizeof label, "%s/%s", name, part);
    if (encode_text(s, text_of(row, "prompt"), skip, &c) != KRON_OK) {
        broken(g, label);
        return;
    }
    float *want = get(f, name, part, &n);
    result(g, label, n == c.tokens * s->e->model.unet.context_width ? rel(c.context, want, n) : NAN,
           BOUND_MODULE);
    mem_free(want);
    if (c.pooled != NULL && skip == 0) {
        want = get(f, name, "pooled", &n);
        snprintf(label, sizeof label, "%s/pooled", name);
        result(g, label, rel(c.pooled, want, n), BOUND_MODULE);
        mem_free(want);
    }
    condition_free(&c);
}

static void check_taps(struct golden *g, struct session *s, const struct st_file *f,
                       const struct net_key *key, const json_t *points, const char *name)
{
    struct net *net;
    const char *tap;
    const json_t *v;

    if (net_get(s, key, &net) != KRON_OK) {
        broken(g, name);
        return;
    }
    json_object_foreach((json_t *)(uintptr_t)points, tap, v)
    {
        char part[64], label[128];
        int64_t dim[4], n;
        snprintf(part, sizeof part, "at/%s", tap);
        snprintf(label, sizeof label, "%s/%s", name, part);
        const struct tensor *t = find(f, name, part);
        n = tensor_elements(t);
        float *want = t->n_dims == 4 ? get_nhwc(f, name, part, dim) : get(f, name, part, NULL);
        float *got = floats(n);
        net_read(net, tap, got, n);
        result(g, label, rel(got, want, n), BOUND_MODULE);
        mem_free(want);
        mem_free(got);
    }
}

static void check_unet(struct golden *g, struct session *s, const struct st_file *f,
                       const char *name, const json_t *points)
{
    bool xl = s->e->model.unet.pooled_width > 0;
    int64_t dim[4], out_dim[4];
    float *x = get_nhwc(f, name, "x", dim), *t = get(f, name, "t", NULL);
    float *context = get(f, name, "context", NULL), *want = get_nhwc(f, name, "out", out_dim);
    float *pooled = xl ? get(f, name, "pooled", NULL) : NULL;
    float *sizes = xl ? get(f, name, "time_ids", NULL) : NULL;
    struct net_key key = {.kind = NET_UNET, .n = dim[0], .h = dim[2], .w = dim[3],
                          .tokens = find(f, name, "context")->dim[1], .taps = points != NULL};
    int64_t n = dim[0] * dim[1] * dim[2] * dim[3];
    float *got = floats(n);

    if (run_unet(s, &key, x, t, context, pooled, sizes, got) != KRON_OK)
        broken(g, name);
    else
        result(g, name, rel(got, want, n), BOUND_MODULE);
    if (points != NULL)
        check_taps(g, s, f, &key, points, name);
    mem_free(x);
    mem_free(t);
    mem_free(context);
    mem_free(want);
    mem_free(pooled);
    mem_free(sizes);
    mem_free(got);
}

static kron_status run_vae(struct session *s, enum net_kind kind, const int64_t in_dim[4],
                           const float *in, float *out, int64_t n_out)
{
    struct net_key key = {.kind = kind, .n = in_dim[0], .h = in_dim[2], .w = in_dim[3]};
    struct net *net;

    KRON_TRY(net_get(s, &key, &net));
    KRON_TRY(net_write(net, kind == NET_DECODE ? "latent" : "image", in,
                       in_dim[0] * in_dim[1] * in_dim[2] * in_dim[3]));
    KRON_TRY(net_run(s, net));
    return net_read(net, kind == NET_DECODE ? "image" : "moments", out, n_out);
}

static void check_vae(struct golden *g, struct session *s, const struct st_file *f,
                      const char *name)
{
    int64_t a[4], b[4];
    char label[128];
    float *in = get_nhwc(f, name, "latent", a), *want = get_nhwc(f, name, "decoded", b);
    int64_t n = b[0] * b[1] * b[2] * b[3], half;
    float *got = floats(n);

    snprintf(label, sizeof label, "%s/decoded", name);
    if (run_vae(s, NET_DECODE, a, in, got, n) != KRON_OK)
        broken(g, label);
    else
        result(g, label, rel(got, want, n), BOUND_MODULE);
    mem_free(in);
    mem_free(want);
    mem_free(got);

    in = get_nhwc(f, name, "image", a);
    float *mean = get_nhwc(f, name, "mean", b), *logvar = get_nhwc(f, name, "logvar", b);
    half = b[1];
    n = b[0] * b[1] * b[2] * b[3];
    got = floats(2 * n);
    want = floats(2 * n);
    for (int64_t i = 0; i < n / half; i++) {
        memcpy(want + i * 2 * half, mean + i * half, (size_t)half * sizeof *want);
        memcpy(want + (i * 2 + 1) * half, logvar + i * half, (size_t)half * sizeof *want);
    }
    snprintf(label, sizeof label, "%s/moments", name);
    if (run_vae(s, NET_ENCODE, a, in, got, 2 * n) != KRON_OK)
        broken(g, label);
    else
        result(g, label, rel(got, want, 2 * n), BOUND_MODULE);
    mem_free(in);
    mem_free(mean);
    mem_free(logvar);
    mem_free(want);
    mem_free(got);
}

void golden_modules(struct golden *g, const char *arch)
{
    struct data_set d;
    struct session *s;
    json_t *row;
    size_t i;

    if (!open_set(g, &d, "modules", arch, KRON_APPLY_AUTO))
        return;
    s = d.l.s;
    json_array_foreach(json_object_get(d.manifest, "text"), i, row)
    {
        for (int te = 0; te < s->e->model.n_te; te++)
            check_encoder(g, s, d.tensors, text_of(row, "name"), te);
        check_context(g, s, d.tensors, row, 0);
        check_context(g, s, d.tensors, row, s->e->model.te[0].default_skip + 1);
    }
    json_array_foreach(json_object_get(d.manifest, "unet"), i, row)
        check_unet(g, s, d.tensors, text_of(row, "name"),
                   i == 0 ? json_object_get(d.manifest, "unet_points") : NULL);
    json_array_foreach(json_object_get(d.manifest, "vae"), i, row)
        check_vae(g, s, d.tensors, text_of(row, "name"));
    close_set(&d);
}
