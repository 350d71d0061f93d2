/* SPDX-License-Identifier: MIT
 * What was applied of a file and what was not, in words. */
#include "adapter/family.h"
#include <string.h>

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

static void add_range(struct str *out, const char *what, int64_t min, int64_t max)
{
    if (max == 0)
        return;
    if (min == max)
        str_addf(out, ", %s %lld", what, (long long)min);
    else
        str_addf(out, ", %s %lld to %lld", what, (long long)min, (long long)max);
}

void adapter_report_text(const struct adapter_report *r, int max_skips, struct str *out)
{
    int n = r->n_skips < max_skips ? r->n_skips : max_skips;

    str_addf(out, "%s: %s", base_name(r->path), r->family);
    add_range(out, "factor", r->up_min, r->up_max);
    add_range(out, "rank", r->rank_min, r->rank_max);
    str_addf(out, ", %s, for %s: applied %d of %d modules, %d of %d tensors", r->naming,
             adapter_arch_text(r->arch), r->n_applied, r->n_modules, r->n_tensors_used,
             r->n_tensors);
    if (r->n_outside > 0)
        str_addf(out, "; %d modules read the text or the time and are left out of the region",
                 r->n_outside);
    if (r->n_embeddings > 0)
        str_addf(out, "; brings the word%s %s", r->n_embeddings > 1 ? "s" : "", r->embeddings);
    str_add(out, "\n");
    for (int i = 0; i < n; i++)
        str_addf(out, "  skipped %s: %s\n", r->skips[i].name, r->skips[i].text);
    if (r->n_skips > n)
        str_addf(out, "  and %d more\n", r->n_skips - n);
}
