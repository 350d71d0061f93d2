/* SPDX-License-Identifier: MIT
 * Adapters made by LyCORIS and PEFT: the change of a layer must be theirs, and whole files must
 * apply to as many layers as they were made for. tools/make_adapter_goldens.py wrote the data. */
#include "adapter_fixture.h"

#define GOLDEN KRON_SOURCE_DIR "/tests/golden/adapter/"

struct golden_case {
    char name[128];
    struct fx_one o;
    int stride, pad, n_adapters;
    float strength[4];
};

/* The n-th adapter of a case as a file of one module for the layer "conv_in". */
static void open_adapter(const struct st_file *st, const struct golden_case *c, int n,
                         struct fx_file *file, struct adapter_file **f)
{
    char prefix[160], name[256], path[512];
    char *config = NULL;
    size_t bytes;
    const char *peft = "base_model.model.m.";

    snprintf(prefix, sizeof prefix, "%s/a%d/", c->name, n);
    for (int64_t i = 0; i < st_count(st); i++) {
        const struct tensor *t = st_at(st, i);
        const char *part = t->name + strlen(prefix);
        if (!str_starts(t->name, prefix))
            continue;
        if (str_starts(part, peft))
            snprintf(name, sizeof name, "base_model.model.conv_in.%s", part + strlen(peft));
        else
            snprintf(name, sizeof name, "lora_unet_conv_in.%s", part);
        fx_add_raw(file, name, dtype_info(t->type)->name, t->n_dims, t->dim, t->data, t->bytes);
    }
    snprintf(path, sizeof path, GOLDEN "config/%s.json", c->name);
    if (path_is_file(path))
        assert_int_equal(file_read(&config, &bytes, path, 1 << 16), KRON_OK);
    if (fx_open(file, f, config) != KRON_OK)
        fail_msg("%s: %s", c->name, kron_error_detail());
    mem_free(config);
}

static void check(const struct golden_case *c, const char *what, const double *got,
                  const struct tensor *want, double limit)
{
    int64_t n = tensor_elements(want);
    float *f = malloc((size_t)n * sizeof *f);
    double *w = malloc((size_t)n * sizeof *w), rel;

    assert_true(f != NULL && w != NULL);
    tensor_decode(want, 0, n, f);
    for (int64_t i = 0; i < n; i++)
        w[i] = f[i];
    rel = fx_rel(got, w, n);
    if (!(rel < limit))
        fail_msg("%s: %s is %g from the reference", c->name, what, rel);
    free(f);
    free(w);
}

/* y = conv(x, w) of one sample, or x w' of one sample's rows. */
static double *apply(const struct golden_case *c, const struct tensor *x, const double *w,
                     const struct tensor *shape)
{
    const struct layer *l = &c->o.layer;
    int64_t n = tensor_elements(x), rows = l->is_conv ? 1 : n / l->in;
    int64_t h = l->is_conv ? x->dim[2] : 1, width = l->is_conv ? x->dim[3] : 1;
    int64_t oh = l->is_conv ? shape->dim[2] : 1, ow = l->is_conv ? shape->dim[3] : 1;
    float *in = malloc((size_t)n * sizeof *in);
    double *y = calloc((size_t)(rows * l->out * oh * ow), sizeof *y);

    assert_true(in != NULL && y != NULL);
    tensor_decode(x, 0, n, in);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < l->out * oh * ow; o++)
            for (int64_t k = 0; k < layer_k(l); k++) {
                int64_t ky = k / l->kw % l->kh, kx = k % l->kw, i = k / (l->kh * l->kw);
                int64_t py = o / ow % oh * c->stride + ky - c->pad;
                int64_t px = o % ow * c->stride + kx - c->pad;
                if (py >= 0 && py < h && px >= 0 && px < width)
                    y[r * l->out * oh * ow + o] += w[o / (oh * ow) * layer_k(l) + k] *
                                                   in[((r * l->in + i) * h + py) * width + px];
            }
    free(in);
    return y;
}

static void run_case(const struct st_file *st, const struct golden_case *c)
{
    const struct layer *l = &c->o.layer;
    int64_t n = l->out * layer_k(l);
    double *sum = calloc((size_t)n, sizeof *sum);
    char name[192];
    const struct tensor *x, *dy;

    assert_non_null(sum);
    for (int a = 0; a < c->n_adapters; a++) {
        struct fx_file file = {0};
        struct adapter_file *f;
        struct adapter_set *set;
        const struct tensor *dw;
        double *got;

        open_adapter(st, c, a, &file, &f);
        if (adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, c->o.names, false) != KRON_OK)
            fail_msg("%s: %s", c->name, kron_error_detail());
        got = fx_change(set, l, c->strength[a]);
        for (int64_t i = 0; i < n; i++)
            sum[i] += got[i];
        snprintf(name, sizeof name, "%s/dW%d", c->name, a);
        if ((dw = st_find(st, name)) != NULL)
            check(c, "change of W", got, dw, 1e-6);
        free(got);
        adapter_set_free(&set);
        adapter_close(&f);
        fx_free(&file);
    }
    snprintf(name, sizeof name, "%s/x", c->name);
    x = st_find(st, name);
    snprintf(name, sizeof name, "%s/dy", c->name);
    dy = st_find(st, name);
    snprintf(name, sizeof name, "%s/dW0", c->name);
    assert_true((x != NULL && dy != NULL) || st_find(st, name) != NULL);
    if (x != NULL && dy != NULL) {
        double *y = apply(c, x, sum, dy);
        check(c, "change of y", y, dy, 1e-5);
        free(y);
    }
    free(sum);
}

static void single_layers_match_lycoris_and_peft(void **state)
{
    struct st_file *st;
    char *text, *line, *rest;
    size_t bytes;
    int n_cases = 0;

    (void)state;
    assert_int_equal(st_open(&st, GOLDEN "cases.safetensors"), KRON_OK);
    assert_int_equal(file_read(&text, &bytes, GOLDEN "cases.txt", 1 << 16), KRON_OK);
    for (line = text; *line != '\0'; line = rest + 1, n_cases++) {
        struct golden_case c = {0};
        long long out, in;
        int kh, kw;
        char type[8];

        rest = strchr(line, '\n');
        assert_non_null(rest);
        *rest = '\0';
        c.n_adapters = sscanf(line, "%127s %7s %lld %lld %d %d %d %d %f %f %f %f", c.name, type,
                              &out, &in, &kh, &kw, &c.stride, &c.pad, &c.strength[0],
                              &c.strength[1], &c.strength[2], &c.strength[3]) -
                       8;
        assert_in_range(c.n_adapters, 1, 4);
        fx_one_create(&c.o, out, in, kh, kw, type[0] == 'c');
        c.o.at[0] = &c.o.layer;
        run_case(st, &c);
        adapter_names_free(&c.o.names);
    }
    assert_true(n_cases > 80);
    mem_free(text);
    st_close(&st);
}

/* One whole file on the tiny checkpoint's layers: nothing unknown, nothing that does not fit. */
static void check_file(const char *path, const struct adapter_names *names, int n_layers)
{
    struct adapter_file *f;
    struct adapter_set *set;
    const struct adapter_report *r;
    kron_status status;
    int n_changed = 0;

    if (adapter_open(&f, path) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    assert_int_equal(adapter_count(f), n_layers);
    status = adapter_bind(&set, &(struct adapter_use){f, 0.5f, 0.25f}, 1, names, false);
    if (status != KRON_OK)
        fail_msg("%s", kron_error_detail());
    r = adapter_set_report(set, 0);
    for (int i = 0; i < r->n_skips; i++)
        fail_msg("%s: %s: %s", path, r->skips[i].name, r->skips[i].text);
    for (int i = 0; i < adapter_set_deltas(set)->n_layers; i++)
        n_changed += adapter_set_deltas(set)->by_layer[i].n > 0;
    assert_int_equal(n_changed, r->n_applied);
    assert_int_equal(r->n_applied, n_layers);
    assert_int_equal(r->n_tensors_used, r->n_tensors);
    adapter_set_free(&set);
    adapter_close(&f);
}

static void whole_files_apply_to_their_layers(void **state)
{
    static const char *const archs[] = {"sd15", "sd2", "sdxl"};
    char path[1024], arch[8], name[128];
    char *text, *line, *rest;
    size_t bytes;
    int n, n_files = 0;

    (void)state;
    if (!path_is_file(KRON_SHARED_DIR "/reference/adapter_sd15_lora.safetensors")) {
        print_message("no reference files in %s/reference: skipped\n", KRON_SHARED_DIR);
        skip();
    }
    assert_int_equal(file_read(&text, &bytes, GOLDEN "files.txt", 1 << 16), KRON_OK);
    for (int a = 0; a < 3; a++) {
        struct fx_table t;
        struct adapter_names *names;

        fx_table_read(&t, archs[a]);
        assert_int_equal(adapter_names_create(&names, &t.table), KRON_OK);
        for (line = text; *line != '\0'; line = rest + 1) {
            rest = strchr(line, '\n');
            assert_int_equal(sscanf(line, "%7s %127s %d", arch, name, &n), 3);
            if (strcmp(arch, archs[a]) != 0)
                continue;
            snprintf(path, sizeof path, KRON_SHARED_DIR "/reference/%s", name);
            check_file(path, names, n);
            n_files++;
        }
        adapter_names_free(&names);
        fx_table_free(&t);
    }
    assert_int_equal(n_files, 39);
    mem_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(single_layers_match_lycoris_and_peft),
        cmocka_unit_test(whole_files_apply_to_their_layers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
