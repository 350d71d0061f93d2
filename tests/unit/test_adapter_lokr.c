/* SPDX-License-Identifier: MIT
 * LoKr: every layout of either factor is the definition, on every kind of layer; when alpha
 * counts. Named cases are the holes of FIELD.md section 0.1. */
#include "adapter_fixture.h"

static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F64, DT_F8_E4M3, DT_F8_E5M2};

/* The four sizes, either factor the larger one. */
static const struct {
    int64_t up, uq, vp, vq;
    int kh, kw;
    bool is_conv;
} shapes[] = {{4, 4, 6, 5, 1, 1, false},  {5, 2, 3, 7, 1, 1, true},  {4, 3, 5, 2, 3, 3, true},
              {2, 5, 4, 3, 1, 3, true},   {10, 4, 2, 3, 3, 3, true}, {1, 1, 7, 5, 1, 1, false},
              {64, 4, 2, 3, 1, 1, false}, {3, 8, 2, 1, 3, 3, true}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, N_TYPES = sizeof types / sizeof *types };

enum w2_form { W2_WHOLE, W2_FLAT, W2_PAIR, W2_PAIR_4D, W2_TUCKER, N_W2 };

#define NAME(part) "lora_unet_conv_in.lokr_" part

static void add_w1(struct fx_file *f, bool pair, int shape, int64_t r, enum dtype t,
                   uint64_t *seed)
{
    if (pair) {
        fx_add(f, NAME("w1_a"), t, seed, FX_DIMS(shapes[shape].up, r));
        fx_add(f, NAME("w1_b"), t, seed, FX_DIMS(r, shapes[shape].uq));
    } else {
        fx_add(f, NAME("w1"), t, seed, FX_DIMS(shapes[shape].up, shapes[shape].uq));
    }
}

static void add_w2(struct fx_file *f, enum w2_form form, int s, int64_t r, enum dtype t,
                   uint64_t *seed)
{
    int64_t vp = shapes[s].vp, vq = shapes[s].vq;
    int kh = shapes[s].kh, kw = shapes[s].kw;

    switch (form) {
    case W2_WHOLE: /* on a linear layer: ending in [1, 1] */
        fx_add(f, NAME("w2"), t, seed, FX_DIMS(vp, vq, kh, kw));
        break;
    case W2_FLAT:
        fx_add(f, NAME("w2"), t, seed, FX_DIMS(vp, vq * kh * kw));
        break;
    case W2_PAIR:
        fx_add(f, NAME("w2_a"), t, seed, FX_DIMS(vp, r));
        fx_add(f, NAME("w2_b"), t, seed, FX_DIMS(r, vq * kh * kw));
        break;
    case W2_PAIR_4D:
        fx_add(f, NAME("w2_a"), t, seed, FX_DIMS(vp, r, 1, 1));
        fx_add(f, NAME("w2_b"), t, seed, FX_DIMS(r, vq, kh, kw));
        break;
    default:
        fx_add(f, NAME("t2"), t, seed, FX_DIMS(r, r, kh, kw));
        fx_add(f, NAME("w2_a"), t, seed, FX_DIMS(r, vp));
        fx_add(f, NAME("w2_b"), t, seed, FX_DIMS(r, vq));
        break;
    }
}

static void lokr_is_its_definition(void **state)
{
    uint64_t seed = 1;

    (void)state;
    for (int s = 0; s < N_SHAPES; s++)
        for (int n = 0; n < N_W2 * 2 * N_TYPES * 2; n++) {
            enum w2_form form = (enum w2_form)(n % N_W2);
            bool pair = n / N_W2 % 2, odd = n / N_W2 / 2 / N_TYPES;
            enum dtype t = types[n / N_W2 / 2 % N_TYPES];
            struct fx_one o;
            struct fx_file f = {0};
            char what[96];

            fx_one_create(&o, shapes[s].up * shapes[s].vp, shapes[s].uq * shapes[s].vq,
                          shapes[s].kh, shapes[s].kw, shapes[s].is_conv);
            snprintf(what, sizeof what, "lokr shape %d w2 form %d, w1 %s, type %d, rank %d", s,
                     (int)form, pair ? "pair" : "whole", (int)t, odd ? 3 : 1);
            fx_add_scalar(&f, "lora_unet_conv_in.alpha", DT_BF16, 2);
            add_w1(&f, pair, s, odd ? 3 : 1, t, &seed);
            add_w2(&f, form, s, odd ? 3 : 1, t, &seed);
            fx_check_module(&f, &o, NULL, what);
            adapter_names_free(&o.names);
        }
}

/* kohya cuts in*kh*kw = 3*9 into 9 * 3, which cuts through a channel's window. */
static void flat_w2_across_channels(void **state)
{
    uint64_t seed = 4;
    struct fx_one o;
    struct fx_file f = {0};

    (void)state;
    fx_one_create(&o, 8, 3, 3, 3, true);
    fx_add(&f, NAME("w1"), DT_F16, &seed, FX_DIMS(4, 9));
    fx_add(&f, NAME("w2"), DT_F16, &seed, FX_DIMS(2, 3));
    fx_check_module(&f, &o, NULL, "flat w2 across channels");
    adapter_names_free(&o.names);
}

struct opened {
    struct fx_one o;
    struct fx_file file;
    struct adapter_file *f;
    struct adapter_set *set;
    struct delta d;
};

/* Binds shape 0 (out 24, in 20) with whole or low-rank factors. */
static void open_pair(struct opened *x, bool w1_pair, enum w2_form form, int64_t r, float alpha,
                      const char *meta, const char *config)
{
    uint64_t seed = 5;

    memset(x, 0, sizeof *x);
    fx_one_create(&x->o, 24, 20, 1, 1, false);
    if (meta != NULL)
        fx_add_meta(&x->file, meta);
    if (alpha != 0)
        fx_add_scalar(&x->file, "lora_unet_conv_in.alpha", DT_F16, alpha);
    add_w1(&x->file, w1_pair, 0, r, DT_F16, &seed);
    add_w2(&x->file, form, 0, r, DT_F16, &seed);
    assert_int_equal(fx_open(&x->file, &x->f, config), KRON_OK);
    assert_int_equal(adapter_bind(&x->set, &(struct adapter_use){x->f, 1, 1}, 1, x->o.names, true),
                     KRON_OK);
    x->d = delta_set_list(adapter_set_deltas(x->set), &x->o.layer).at[0];
}

static float closed(struct opened *x)
{
    adapter_set_free(&x->set);
    adapter_close(&x->f);
    fx_free(&x->file);
    adapter_names_free(&x->o.names);
    return x->d.scale;
}

static void lokr_full_pair_ignores_alpha(void **state)
{
    struct opened x;

    (void)state;
    open_pair(&x, false, W2_WHOLE, 1, 7, NULL, NULL);
    assert_int_equal(x.d.rank, 0);
    assert_float_equal(closed(&x), 1, 0);
    open_pair(&x, false, W2_FLAT, 1, INFINITY, NULL, NULL);
    assert_float_equal(closed(&x), 1, 0);
}

static void lokr_rank_one_keeps_alpha(void **state)
{
    struct opened x;

    (void)state;
    open_pair(&x, false, W2_PAIR, 1, 0.25f, NULL, NULL);
    assert_int_equal(x.d.rank, 1);
    assert_float_equal(closed(&x), 0.25, 0);
    open_pair(&x, true, W2_WHOLE, 1, 3, NULL, NULL);
    assert_float_equal(closed(&x), 3, 0);
    open_pair(&x, true, W2_PAIR, 2, 3, NULL, NULL);
    assert_float_equal(closed(&x), 1.5, 0);
    open_pair(&x, false, W2_TUCKER, 4, 3, NULL, NULL);
    assert_float_equal(closed(&x), 0.75, 0);
}

static void lokr_exceptions_by_metadata(void **state)
{
    const char *cdka = "{\"ss_network_module\":\"networks.cdka\","
                       "\"ss_network_args\":\"{\\\"cdka_alpha\\\": \\\"6\\\"}\"}";
    const char *plain = "{\"ss_network_module\":\"networks.cdka\",\"ss_network_args\":\"{}\"}";
    const char *krona = "{\"ss_network_module\":\"networks.krona\",\"ss_network_args\":"
                        "\"{\\\"krona_alpha\\\": \\\"6\\\", \\\"use_cdka_scale\\\": \\\"True\\\"}\""
                        "}";
    struct opened x;

    (void)state;
    open_pair(&x, false, W2_WHOLE, 1, 6, cdka, NULL);
    assert_float_equal(closed(&x), 3, 0); /* 6 / sqrt(uq = 4) */
    open_pair(&x, false, W2_WHOLE, 1, 6, krona, NULL);
    assert_float_equal(closed(&x), 3, 0);
    open_pair(&x, false, W2_WHOLE, 1, 6, plain, NULL);
    assert_float_equal(closed(&x), 1, 0);
    /* PEFT scales whole pairs as well. */
    open_pair(&x, false, W2_WHOLE, 1, 0, NULL, "{\"r\": 64, \"alpha\": 32}");
    assert_float_equal(closed(&x), 0.5, 0);
}

static void factors_in_canonical_layout_are_views(void **state)
{
    struct opened x;

    (void)state;
    open_pair(&x, false, W2_PAIR, 3, 1, NULL, NULL);
    assert_int_equal(adapter_set_bytes(x.set), 0);
    assert_int_equal(x.d.kind, DELTA_KRON);
    assert_int_equal(x.d.up * 1000 + x.d.uq * 100 + x.d.vp * 10 + x.d.vq, 4465);
    assert_int_equal(x.d.a.type, DT_F16);
    closed(&x);
    open_pair(&x, true, W2_TUCKER, 3, 1, NULL, NULL);
    assert_int_equal(adapter_set_bytes(x.set), 4 * (4 * 4 + 6 * 3 + 3 * 5));
    closed(&x);
}

static void w2_of_another_width_is_reported(void **state)
{
    uint64_t seed = 6;
    struct fx_one o;
    struct fx_file file = {0};
    struct adapter_file *f;
    struct adapter_set *set;

    (void)state;
    fx_one_create(&o, 24, 20, 1, 1, false);
    fx_add(&file, NAME("w1"), DT_F32, &seed, FX_DIMS(4, 4));
    fx_add(&file, NAME("w2"), DT_F32, &seed, FX_DIMS(6, 7));
    assert_int_equal(fx_open(&file, &f, NULL), KRON_OK);
    assert_int_equal(adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, o.names, false),
                     KRON_ERR_SHAPE);
    assert_non_null(strstr(kron_error_detail(), "w1 [4, 4] and w2 [6, 7] do not make the layer's "
                                                "[24, 20]"));
    assert_int_equal(adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, o.names, true),
                     KRON_ERR_SHAPE);
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&o.names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lokr_is_its_definition),
        cmocka_unit_test(flat_w2_across_channels),
        cmocka_unit_test(lokr_full_pair_ignores_alpha),
        cmocka_unit_test(lokr_rank_one_keeps_alpha),
        cmocka_unit_test(lokr_exceptions_by_metadata),
        cmocka_unit_test(factors_in_canonical_layout_are_views),
        cmocka_unit_test(w2_of_another_width_is_reported),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
