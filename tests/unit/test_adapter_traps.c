/* SPDX-License-Identifier: MIT
 * Rows H1 to H13 of FIELD.md section 0.1, what others fell into, each a test by its name. */
#include "adapter_scene.h"

static void h1_split_factors_on_a_linear_layer(void **state)
{
    static void (*const adds[])(struct fx_maker *) = {split_w2, split_w1, both};
    struct scene s;

    (void)state;
    linear_scene(&s);
    for (int i = 0; i < 3; i++) /* r = 3 is none of up 4, uq 2, vp 6, vq 10 */
        assert_defined(&s, &(struct recipe){.add = adds[i], .r = 3, .up = 4, .uq = 2}, 0.5f);
    scene_close(&s);
}

static void h2_tucker_core_counts(void **state)
{
    struct scene s;

    (void)state;
    conv_scene(&s, 3, 3, 1);
    assert_defined(&s, &(struct recipe){.add = tucker, .r = 3, .up = 4, .uq = 2}, 1);
    scene_close(&s);
}

BESIDE(whole_scale, whole, SCALAR("scale", DT_F32, 0.3f))

/* A pair of whole factors ignores alpha, and does not where the file says so. */
static void h3_full_pair_scale_is_a_rule_not_a_marker(void **state)
{
    const struct recipe bare = {.add = whole, .up = 6, .uq = 4};
    struct scene s;

    (void)state;
    linear_scene(&s);
    assert_scale(&s, &(struct recipe){.add = whole_alpha, .up = 6, .uq = 4}, &bare, 1);
    assert_scale(&s, &(struct recipe){.add = whole_scale, .up = 6, .uq = 4}, &bare, 0.3f);
    assert_scale(&s, &(struct recipe){.add = whole_alpha, .meta = cdka, .up = 6, .uq = 4}, &bare,
                 3);
    scene_close(&s);
}

BESIDE(split_quarter, split_w2, SCALAR("alpha", DT_BF16, 0.25f))
BESIDE(both_quarter, both, SCALAR("alpha", DT_BF16, 0.25f))

static void h4_rank_one_keeps_alpha(void **state)
{
    struct scene s;

    (void)state;
    linear_scene(&s);
    assert_scale(&s, &(struct recipe){.add = split_quarter, .r = 1, .up = 4, .uq = 4},
                 &(struct recipe){.add = split_w2, .r = 1, .up = 4, .uq = 4}, 0.25f);
    assert_scale(&s, &(struct recipe){.add = both_quarter, .r = 1, .up = 4, .uq = 4},
                 &(struct recipe){.add = both, .r = 1, .up = 4, .uq = 4}, 0.25f);
    scene_close(&s);
}

/* Each sample of a batch is what it is alone. */
static void check_batch(struct scene *s, const struct recipe *r)
{
    float *all = with_files(s, r, 1, 1), *x = s->x;
    int64_t batch = s->call.x.n, one = s->n / batch, in = gr_elements(s->call.x) / batch;

    s->call.x.n = 1;
    s->n = one;
    for (int64_t i = 0; i < batch; i++) {
        float *alone;
        s->x = x + i * in;
        alone = with_files(s, r, 1, 1);
        assert_same(all + i * one, alone, one, "a sample of a batch");
        free(alone);
    }
    s->x = x;
    free(all);
}

static void h5_convolution_with_a_batch(void **state)
{
    struct scene s;

    (void)state;
    conv_scene(&s, 3, 3, 3);
    check_batch(&s, &(struct recipe){.add = whole, .up = 4, .uq = 5});
    scene_close(&s);
}

static void h6_linear_with_a_batch_of_tokens(void **state)
{
    struct scene s;

    (void)state;
    scene_open(&s, 24, 20, 1, 1, (struct gr_shape){3, 1, 77, 20});
    check_batch(&s, &(struct recipe){.add = split_w2, .r = 3, .up = 4, .uq = 5});
    scene_close(&s);
}

/* w2 in bf16 as large as f16 cannot hold; w1 makes up for it. */
static void beyond_f16(struct fx_maker *m)
{
    int64_t n = m->vp * m->vq * m->kh * m->kw, n1 = m->up * m->uq;
    int64_t dim[] = {m->vp, m->vq, m->kh, m->kw}, dim1[] = {m->up, m->uq};
    uint16_t *w2 = malloc((size_t)n * sizeof *w2);
    float *w1 = numbers(n1, 8);

    assert_non_null(w2);
    for (int64_t i = 0; i < n; i++)
        w2[i] = f32_to_bf16(1e6f * fx_unit(m->seed));
    for (int64_t i = 0; i < n1; i++)
        w1[i] *= 1e-6f;
    fx_add_raw(m->file, FX_PREFIX "lokr_w1", "F32", 2, dim1, w1, (size_t)n1 * sizeof *w1);
    fx_add_raw(m->file, FX_PREFIX "lokr_w2", "BF16", 4, dim, w2, (size_t)n * sizeof *w2);
    free(w1);
    free(w2);
}

static void h7_windows_that_are_not_square(void **state)
{
    static const int windows[][2] = {{1, 3}, {3, 1}, {5, 3}};
    struct scene s;

    (void)state;
    for (int i = 0; i < 3; i++) {
        conv_scene(&s, windows[i][0], windows[i][1], 2);
        assert_defined(&s, &(struct recipe){.add = whole, .up = 4, .uq = 5}, 1);
        assert_defined(&s, &(struct recipe){.add = split_w2, .r = 3, .up = 4, .uq = 5}, 1);
        scene_close(&s);
    }
}

static void h7_factors_beyond_f16_keep_their_range(void **state)
{
    struct scene s;

    (void)state;
    conv_scene(&s, 3, 3, 1);
    assert_defined(&s, &(struct recipe){.add = beyond_f16, .up = 4, .uq = 5}, 1);
    scene_close(&s);
}

static void h8_flat_w2_is_the_same_numbers(void **state)
{
    struct scene s;
    float *a, *b;

    (void)state;
    conv_scene(&s, 3, 3, 1);
    a = with_files(&s, &(struct recipe){.add = whole, .up = 4, .uq = 5}, 1, 1);
    b = with_files(&s, &(struct recipe){.add = flat, .up = 4, .uq = 5}, 1, 1);
    assert_memory_equal(a, b, (size_t)s.n * sizeof *a);
    free(a);
    free(b);
    scene_close(&s);
}

/* The compute buffer of a plan by `route`, with the file or without (r NULL). */
static size_t plan_bytes(struct scene *s, const struct recipe *r, enum gr_route route)
{
    struct fx_file file = {0};
    struct adapter_file *f = NULL;
    struct adapter_set *set = NULL;
    struct be_weights *weights;
    struct be_plan *plan;
    struct graph g;
    float strengths[ADAPTER_SLOTS];
    size_t bytes;

    if (r != NULL) {
        write_file(s, r, &file);
        assert_int_equal(fx_open(&file, &f, NULL), KRON_OK);
        assert_int_equal(adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, s->o.names, true),
                         KRON_OK);
    }
    for (int i = 0; i < ADAPTER_SLOTS; i++)
        strengths[i] = 1;
    gr_init(&g, "layer");
    gr_output(&g, layer_run_op(&g, &s->o.layer, &s->call), "y");
    assert_int_equal(gr_plan(&g), KRON_OK);
    g.ops[0].route = route;
    assert_int_equal(
        be_weights_create(cpu, &s->o.table, set ? adapter_set_deltas(set) : NULL, &weights),
        KRON_OK);
    assert_int_equal(be_plan_create(cpu, &g, weights, strengths, &plan), KRON_OK);
    bytes = be_plan_bytes(cpu, plan);
    be_plan_free(cpu, &plan);
    be_weights_free(cpu, &weights);
    gr_free(&g);
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(&file);
    return bytes;
}

/* What the file adds to the compute buffer of the activation route. */
static size_t extra_bytes(struct scene *s, const struct recipe *r)
{
    return plan_bytes(s, r, ROUTE_ACTIVATION) - plan_bytes(s, NULL, ROUTE_ACTIVATION);
}

static void h9_loha_and_diff_are_never_stored_whole(void **state)
{
    const struct recipe recipes[] = {{.add = fx_row_loha, .r = 4}, {.add = fx_row_full}};
    struct scene s;

    (void)state;
    scene_open(&s, 2048, 2048, 1, 1, (struct gr_shape){1, 1, 2, 2048});
    for (int i = 0; i < 2; i++)
        assert_in_range(extra_bytes(&s, &recipes[i]), 1, 2048 * 2048 * sizeof(float) / 4);
    scene_close(&s);
}

/* Families that others ignore or apply in part: each changes the layer, as its definition says. */
static void h10_other_families_are_applied(void **state)
{
    static const struct recipe recipes[] = {
        {.add = fx_row_lora, .r = 3, .dora = FX_DORA_OUT},
        {.add = fx_row_loha, .r = 3, .dora = FX_DORA_IN},
        {.add = fx_row_lora_4d, .r = 3, .dora = FX_DORA_PEFT},
        {.add = fx_row_oft, .up = 6, .uq = 5},
        {.add = fx_row_oft_peft, .up = 6, .uq = 5},
        {.add = fx_row_boft},
        {.add = fx_row_glora, .r = 3},
        {.add = fx_row_glora_old, .r = 3},
        {.add = fx_row_ia3_out},
        {.add = fx_row_ia3_in},
        {.add = fx_row_set}};
    struct scene s;

    (void)state;
    for (size_t i = 0; i < 2 * sizeof recipes / sizeof *recipes; i++) {
        if (i % 2)
            conv_scene(&s, 3, 3, 2);
        else
            linear_scene(&s);
        assert_defined(&s, &recipes[i / 2], 1);
        float *y = with_files(&s, &recipes[i / 2], 1, 1), *base = plain(&s);
        assert_memory_not_equal(y, base, (size_t)s.n * sizeof *y);
        free(y);
        free(base);
        scene_close(&s);
    }
}

static void lora_zero_with_bias(struct fx_maker *m)
{
    float *zeros = calloc((size_t)(m->out * m->r), sizeof *zeros);
    int64_t up[] = {m->out, m->r}, n[] = {m->out};

    assert_non_null(zeros);
    FX_PART(m, "lora_A.weight", m->r, m->in);
    fx_add_raw(m->file, FX_PREFIX "lora_B.weight", "F32", 2, up, zeros,
               (size_t)(m->out * m->r) * sizeof *zeros);
    for (int64_t i = 0; i < m->out; i++)
        zeros[i] = 0.25f;
    fx_add_raw(m->file, FX_PREFIX "lora_B.bias", "F32", 1, n, zeros,
               (size_t)m->out * sizeof *zeros);
    free(zeros);
}

static void h10_bias_of_lora_B_counts(void **state)
{
    const struct recipe r = {.add = lora_zero_with_bias, .r = 2};
    struct scene s;

    (void)state;
    linear_scene(&s);
    float *y = with_files(&s, &r, 0.5f, 1), *want = plain(&s);
    for (int64_t i = 0; i < s.n; i++)
        want[i] += 0.125f;
    assert_same(y, want, s.n, "bias");
    free(y);
    free(want);
    scene_close(&s);
}

static void norm_quarter(struct fx_maker *m)
{
    float v[64];
    int64_t n[] = {m->out};

    for (int i = 0; i < 64; i++)
        v[i] = 0.25f;
    fx_add_raw(m->file, FX_PREFIX "w_norm", "F32", 1, n, v, (size_t)m->out * sizeof *v);
    fx_add_raw(m->file, FX_PREFIX "b_norm", "F32", 1, n, v, (size_t)m->out * sizeof *v);
}

/* A norm's weight and bias, each 0.5 * 0.25 more. */
static void h10_norms_are_changed(void **state)
{
    const struct recipe r = {.add = norm_quarter};

    (void)state;
    for (int groups = 0; groups <= 4; groups += 4) {
        struct scene s;
        scene_open(&s, 16, 1, 1, 1, (struct gr_shape){2, 3, 4, 16});
        s.o.layer.kind = LAYER_NORM;
        s.o.layer.is_conv = false;
        s.call.groups = groups;
        float *y = with_files(&s, &r, 0.5f, 1), *want;
        for (int i = 0; i < 16; i++) {
            s.weight[i] += 0.125f;
            s.bias[i] += 0.125f;
        }
        want = plain(&s);
        assert_same(y, want, s.n, "norm");
        free(y);
        free(want);
        scene_close(&s);
    }
}

/* More rows than a grid axis of 65,535 has, and a prime number of them. */
static void h11_prime_number_of_rows(void **state)
{
    struct scene s;

    (void)state;
    scene_open(&s, 6, 4, 1, 1, (struct gr_shape){1, 1, 65537, 4});
    assert_defined(&s, &(struct recipe){.add = whole, .up = 2, .uq = 2}, 1);
    assert_defined(&s, &(struct recipe){.add = split_w2, .r = 1, .up = 2, .uq = 2}, 1);
    scene_close(&s);
}

/* Scratch for tiles of rows, not for all of them: it does not grow with their number. */
static void h12_activations_are_not_copied(void **state)
{
    static const int64_t rows[] = {30000, 60000};
    const struct recipe recipes[] = {{.add = whole, .up = 8, .uq = 8},
                                     {.add = split_w2, .r = 4, .up = 8, .uq = 8}};
    size_t extra[2];

    (void)state;
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) {
            struct scene s;
            scene_open(&s, 64, 64, 1, 1, (struct gr_shape){1, 1, rows[j], 64});
            extra[j] = extra_bytes(&s, &recipes[i]);
            scene_close(&s);
        }
        assert_int_equal(extra[0], extra[1]);
        assert_in_range(extra[0], 1, 60000 * 64 * sizeof(float) / 2);
    }
}

/* --- H13: q, k and v of unequal heights on one layer --- */

static const struct {
    const char *name;
    int64_t at, rows;
} pieces[] = {{"to_q", 0, 8}, {"to_k", 8, 12}, {"to_v", 20, 4}};

static void add_piece(struct fx_file *f, const char *name, int i, const struct layer *l)
{
    uint64_t seed = 20 + (uint64_t)i;
    char part[64];

    snprintf(part, sizeof part, "lora_unet_%s.lokr_w1", name);
    fx_add(f, part, DT_F32, &seed, FX_DIMS(2, 4));
    snprintf(part, sizeof part, "lora_unet_%s.lokr_w2", name);
    fx_add(f, part, DT_F32, &seed, FX_DIMS(pieces[i].rows / 2, l->in / 4, l->kh, l->kw));
}

/* The output with the file, which is freed, by every route. */
static float *with_file(struct scene *s, struct fx_file *file)
{
    struct adapter_file *f;
    struct adapter_set *set;
    float *y;

    assert_int_equal(fx_open(file, &f, NULL), KRON_OK);
    if (adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, s->o.names, true) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    y = with_set(s, set);
    adapter_set_free(&set);
    adapter_close(&f);
    fx_free(file);
    return y;
}

/* Each piece's channels are those of a layer of its own. */
static void check_pieces(struct scene *s, const float *y)
{
    int64_t out = s->o.layer.out, pixels = s->n / out;

    for (int i = 0; i < 3; i++) {
        struct fx_file file = {0};
        struct scene part = *s;
        float *weight = s->weight + pieces[i].at * layer_k(&s->o.layer), *want, *got;
        int64_t rows = pieces[i].rows, n = rows * layer_k(&s->o.layer);

        fx_one_create(&part.o, rows, s->o.layer.in, s->o.layer.kh, s->o.layer.kw,
                      s->o.layer.is_conv);
        part.o.layer.weight = view(weight, n);
        part.o.layer.bias = view(s->bias + pieces[i].at, rows);
        part.n = pixels * rows;
        add_piece(&file, "conv_in", i, &part.o.layer);
        want = with_file(&part, &file);
        got = numbers(part.n, 1);
        for (int64_t j = 0; j < part.n; j++)
            got[j] = y[j / rows * out + pieces[i].at + j % rows];
        assert_same(got, want, part.n, pieces[i].name);
        free(got);
        free(want);
        adapter_names_free(&part.o.names);
    }
}

static void h13_split_pieces_go_to_their_rows(void **state)
{
    (void)state;
    for (int conv = 0; conv < 2; conv++) {
        struct layer_alias aliases[3];
        struct fx_file file = {0};
        struct scene s;
        float *y;

        if (conv)
            conv_scene(&s, 3, 3, 2);
        else
            linear_scene(&s);
        for (int i = 0; i < 3; i++) {
            aliases[i] = (struct layer_alias){pieces[i].name, NULL,           &s.o.layer,
                                              pieces[i].at,   pieces[i].rows, 0};
            add_piece(&file, pieces[i].name, i, &s.o.layer);
        }
        s.o.table.aliases = aliases;
        s.o.table.n_aliases = 3;
        adapter_names_free(&s.o.names);
        assert_int_equal(adapter_names_create(&s.o.names, &s.o.table), KRON_OK);
        y = with_file(&s, &file);
        check_pieces(&s, y);
        free(y);
        scene_close(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(h1_split_factors_on_a_linear_layer),
        cmocka_unit_test(h2_tucker_core_counts),
        cmocka_unit_test(h3_full_pair_scale_is_a_rule_not_a_marker),
        cmocka_unit_test(h4_rank_one_keeps_alpha),
        cmocka_unit_test(h5_convolution_with_a_batch),
        cmocka_unit_test(h6_linear_with_a_batch_of_tokens),
        cmocka_unit_test(h7_windows_that_are_not_square),
        cmocka_unit_test(h7_factors_beyond_f16_keep_their_range),
        cmocka_unit_test(h8_flat_w2_is_the_same_numbers),
        cmocka_unit_test(h9_loha_and_diff_are_never_stored_whole),
        cmocka_unit_test(h10_other_families_are_applied),
        cmocka_unit_test(h10_bias_of_lora_B_counts),
        cmocka_unit_test(h10_norms_are_changed),
        cmocka_unit_test(h11_prime_number_of_rows),
        cmocka_unit_test(h12_activations_are_not_copied),
        cmocka_unit_test(h13_split_pieces_go_to_their_rows),
    };

    return SCENE_TESTS(tests);
}
