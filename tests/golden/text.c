/* SPDX-License-Identifier: MIT
 * tokens.json and schedules.json. */
#include "golden.h"
#include "sample/schedule.h"
#include <math.h>
#include <string.h>

static bool same_ids(const json_t *want, const int32_t *ids, size_t n)
{
    if (json_array_size(want) != n)
        return false;
    for (size_t i = 0; i < n; i++)
        if (json_integer_value(json_array_get(want, i)) != ids[i])
            return false;
    return true;
}

void golden_tokens(struct golden *g)
{
    json_t *all = load_json(g, "tokens.json"), *row;
    struct tokenizer *t;
    size_t i;

    if (all == NULL || !wanted(g, "tokens") || tok_create(&t) != KRON_OK)
        return;
    json_array_foreach(all, i, row)
    {
        const char *text = text_of(row, "text");
        char name[64];
        int32_t *ids;
        size_t n;
        snprintf(name, sizeof name, "tokens/%zu", i);
        if (tok_encode(t, text, strlen(text), &ids, &n) != KRON_OK) {
            broken(g, name);
            continue;
        }
        result(g, name, same_ids(json_object_get(row, "ids"), ids, n) ? 0 : 1, 0);
        mem_free(ids);
    }
    tok_free(&t);
    json_decref(all);
}

static double worst(const json_t *want, const double *got, bool timesteps,
                    const struct noise_levels *l)
{
    double most = 0;
    const json_t *v;
    size_t i;

    json_array_foreach((json_t *)(uintptr_t)want, i, v)
    {
        double w = json_number_value(v), x = timesteps ? sigma_to_t(l, got[i]) : got[i];
        most = fmax(most, fabs(x - w) / fmax(fabs(w), 1));
    }
    return most;
}

void golden_schedules(struct golden *g)
{
    json_t *all = load_json(g, "schedules.json"), *row;
    struct noise_levels l;
    size_t i;

    if (all == NULL || !wanted(g, "schedules"))
        return;
    levels_init(&l);
    json_array_foreach(json_object_get(all, "schedules"), i, row)
    {
        double sigmas[SCHEDULE_MAX_STEPS + 1];
        enum schedule s;
        char name[96];
        int n = (int)number_of(row, "n");
        snprintf(name, sizeof name, "schedules/%s-%d", text_of(row, "name"), n);
        if (schedule_find(&s, text_of(row, "name")) != KRON_OK ||
            schedule_sigmas(sigmas, s, n, KRON_ARCH_SD1, &l) != KRON_OK) {
            broken(g, name);
            continue;
        }
        result(g, name, fmax(worst(json_object_get(row, "sigmas"), sigmas, false, &l),
                             worst(json_object_get(row, "timesteps"), sigmas, true, &l)), 1e-8);
    }
    json_decref(all);
}
