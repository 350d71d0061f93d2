/* SPDX-License-Identifier: MIT
 * The table of one level; included last. */
#define TABLE(level)                                                                       \
    const struct cpu_kernels cpu_kernels_##level = {                                       \
        .name = #level, .lanes = VL, .decode = k_decode, .decode_axpy = k_decode_axpy,     \
        .axpy = k_axpy, .axpy_mul = k_axpy_mul, .dot = k_dot, .dots = k_dots,              \
        .gemm = k_gemm, .conv = k_conv,                                                    \
        .wino = {k_wino_input, k_wino_weights, k_wino_product, k_wino_output},             \
        .scatter8 = k_scatter8, .finish = k_finish, .geglu = k_geglu,                      \
        .column_sums = k_column_sums, .normalise = k_normalise, .layer_norm = k_layer_norm, \
        .attention = k_attention,                                                          \
    }
