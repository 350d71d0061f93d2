/* SPDX-License-Identifier: MIT
 * LoHa: the canonical form is the definition, with and without Tucker cores. */
#include "adapter_fixture.h"

static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F64, DT_F8_E4M3, DT_F8_E5M2};

static const struct {
    int64_t out, in;
    int kh, kw;
    bool is_conv;
} shapes[] = {{12, 8, 1, 1, false}, {7, 5, 1, 1, true}, {6, 10, 3, 3, true}, {9, 4, 1, 3, true}};

static void add_pair(struct fx_file *f, int which, bool core, enum dtype t, uint64_t *seed,
                     int64_t out, int64_t in, int64_t r, int kh, int kw)
{
    char name[64];

    snprintf(name, sizeof name, "lycoris_conv_in.hada_w%d_a", which);
    if (core)
        fx_add(f, name, t, seed, FX_DIMS(r, out));
    else
        fx_add(f, name, t, seed, FX_DIMS(out, r));
    snprintf(name, sizeof name, "lycoris_conv_in.hada_w%d_b", which);
    fx_add(f, name, t, seed, FX_DIMS(r, core ? in : in * kh * kw));
    snprintf(name, sizeof name, "lycoris_conv_in.hada_t%d", which);
    if (core)
        fx_add(f, name, t, seed, FX_DIMS(r, r, kh, kw));
}

static void loha_is_its_definition(void **state)
{
    uint64_t seed = 1;

    (void)state;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int64_t r = 1; r <= 5; r += 2)
            for (int core = 0; core < 2; core++)
                for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
                    struct fx_one o;
                    struct fx_file f = {0};
                    char what[64];

                    fx_one_create(&o, shapes[s].out, shapes[s].in, shapes[s].kh, shapes[s].kw,
                                  shapes[s].is_conv);
                    snprintf(what, sizeof what, "loha shape %zu rank %d core %d type %zu", s,
                             (int)r, core, t);
                    fx_add_scalar(&f, "lycoris_conv_in.alpha", types[t], 2);
                    for (int which = 1; which <= 2; which++)
                        add_pair(&f, which, core, types[t], &seed, shapes[s].out, shapes[s].in, r,
                                 shapes[s].kh, shapes[s].kw);
                    fx_check_module(&f, &o, NULL, what);
                    adapter_names_free(&o.names);
                }
}

static void one_core_is_not_enough(void **state)
{
    uint64_t seed = 1;
    struct fx_one o;
    struct fx_file file = {0};
    struct adapter_file *f;
    struct adapter_set *set;

    (void)state;
    fx_one_create(&o, 6, 4, 3, 3, true);
    add_pair(&file, 1, true, DT_F32, &seed, 6, 4, 2, 3, 3);
    add_pair(&file, 2, false, DT_F32, &seed, 6, 4, 2, 3, 3);
    assert_int_equal(fx_open(&file, &f, NULL), KRON_OK);
    assert_int_equal(adapter_bind(&set, &(struct adapter_use){f, 1, 1}, 1, o.names, false),
                     KRON_ERR_SHAPE);
    assert_null(set);
    assert_non_null(strstr(kron_error_detail(), "has hada_t1 but no hada_t2"));
    adapter_close(&f);
    fx_free(&file);
    adapter_names_free(&o.names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loha_is_its_definition),
        cmocka_unit_test(one_core_is_not_enough),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
