/* SPDX-License-Identifier: MIT
 * What is written in a type reads back as the nearest number that it has. */
#include "tensor/tensor.h"
#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static void encoded_numbers_read_back(void **state)
{
    static const struct {
        enum dtype type;
        float third, large; /* 1/3 and 1e6 in this type */
    } cases[] = {
        {DT_F64, 1 / 3.0f, 1e6f},         {DT_F32, 1 / 3.0f, 1e6f},
        {DT_F16, 0x1.554p-2f, INFINITY},  {DT_BF16, 0x1.56p-2f, 999424.0f},
        {DT_F8_E4M3, 0.34375f, NAN},      {DT_F8_E5M2, 0.3125f, INFINITY},
    };
    const float in[3] = {1 / 3.0f, -2, 1e6f};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned char memory[3 * 8];
        float out[3];
        struct tensor t = {.data = memory, .type = cases[i].type, .n_dims = 1,
                           .dim = {3, 1, 1, 1, 1, 1}};
        assert_true(dtype_is_float(t.type));
        tensor_encode(t.type, in, 3, memory);
        tensor_decode(&t, 0, 3, out);
        assert_true(out[0] == cases[i].third);
        assert_true(out[1] == -2);
        assert_true(out[2] == cases[i].large || (isnan(out[2]) && isnan(cases[i].large)));
    }
    assert_false(dtype_is_float(DT_I64));
    assert_false(dtype_is_float(DT_BOOL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(encoded_numbers_read_back)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
