/* SPDX-License-Identifier: MIT
 * Where, when and how much an adapter acts: blocks, steps, strengths. */
#include "adapter/family.h"
#include <string.h>

/* --- blocks --- */

enum { BLOCK_BASE, BLOCK_IN, BLOCK_MIDDLE = BLOCK_IN + 12, BLOCK_OUT, BLOCKS_A_SIDE = 12 };

/* The number after "input_blocks." and the like; pruned networks have fewer, none has more. */
static int side_number(const char *rest)
{
    int n = 0;

    while (*rest >= '0' && *rest <= '9' && n < BLOCKS_A_SIDE)
        n = 10 * n + (*rest++ - '0');
    return n < BLOCKS_A_SIDE ? n : BLOCKS_A_SIDE - 1;
}

int adapter_block(const struct layer *l)
{
    static const char in[] = "input_blocks.", out[] = "output_blocks.";

    if (l->part != PART_UNET)
        return BLOCK_BASE;
    if (str_starts(l->native, in))
        return BLOCK_IN + side_number(l->native + sizeof in - 1);
    if (str_starts(l->native, out))
        return BLOCK_OUT + side_number(l->native + sizeof out - 1);
    return str_starts(l->native, "middle_block.") ? BLOCK_MIDDLE : BLOCK_BASE;
}

int adapter_slot(const struct layer *l)
{
    return l->part == PART_UNET ? 1 + adapter_block(l) : 0;
}

bool adapter_sees_image(const struct layer *l)
{
    static const char *const blind[] = {"time_embed.", "label_emb.", ".emb_layers.", ".attn2.to_k",
                                        ".attn2.to_v"};

    if (l->part != PART_UNET)
        return false;
    for (size_t i = 0; i < sizeof blind / sizeof *blind; i++)
        if (strstr(l->native, blind[i]) != NULL)
            return false;
    return true;
}

/* --- steps --- */

bool adapter_steps_vary(const struct adapter_steps *s)
{
    if (s->start > (s->in_numbers ? 1 : 0))
        return true;
    if (s->stop > 0 && (s->in_numbers || s->stop < 1))
        return true;
    for (int i = 1; i < s->n_points; i++)
        if (s->points[i].factor != s->points[0].factor)
            return true;
    return false;
}

static float place(int step, int n_steps, bool in_numbers)
{
    return in_numbers ? (float)(step + 1) : (float)step / (float)n_steps;
}

static float along(const kron_step_point *p, int n, float at)
{
    int i = n - 1;

    while (i > 0 && p[i].at > at)
        i--;
    if (i == n - 1 || p[i].at > at)
        return p[i].factor;
    float share = (at - p[i].at) / (p[i + 1].at - p[i].at);
    return p[i].factor + share * (p[i + 1].factor - p[i].factor);
}

float adapter_steps_factor(const struct adapter_steps *s, int step, int n_steps)
{
    float at = place(step, n_steps, s->in_numbers);

    if (at < s->start || (s->stop > 0 && at >= s->stop))
        return 0;
    if (s->n_points == 0)
        return 1;
    return along(s->points, s->n_points, place(step, n_steps, s->points_in_numbers));
}

void adapter_strengths(const struct adapter_use *u, int step, int n_steps, float *out)
{
    float unet = u->unet_strength * adapter_steps_factor(&u->steps, step, n_steps);

    out[0] = u->te_strength * (u->blocks != NULL ? u->blocks[BLOCK_BASE] : 1);
    for (int b = 0; b < ADAPTER_BLOCKS; b++)
        out[1 + b] = unet * (u->blocks != NULL ? u->blocks[b] : 1);
}
