/* SPDX-License-Identifier: MIT
 * Numbers of ggml's types (github.com/ggml-org/ggml, docs/gguf.md) and ours. */
#include "file/gguf.h"

static const struct {
    uint32_t number;
    enum dtype type;
} types[] = {
    {0, DT_F32},     {1, DT_F16},     {2, DT_Q4_0},    {3, DT_Q4_1},    {6, DT_Q5_0},
    {7, DT_Q5_1},    {8, DT_Q8_0},    {10, DT_Q2_K},   {11, DT_Q3_K},   {12, DT_Q4_K},
    {13, DT_Q5_K},   {14, DT_Q6_K},   {20, DT_IQ4_NL}, {23, DT_IQ4_XS}, {24, DT_I8},
    {25, DT_I16},    {26, DT_I32},    {27, DT_I64},    {28, DT_F64},    {30, DT_BF16},
    {34, DT_TQ1_0},  {35, DT_TQ2_0},  {39, DT_MXFP4},  {40, DT_NVFP4},
};

bool gguf_type(uint32_t number, enum dtype *out)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].number == number) {
            *out = types[i].type;
            return true;
        }
    return false;
}

bool gguf_type_number(enum dtype type, uint32_t *out)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].type == type) {
            *out = types[i].number;
            return true;
        }
    return false;
}
