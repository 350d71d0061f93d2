/* SPDX-License-Identifier: MIT */
#include "sample/schedule.h"
#include <math.h>

static const struct {
    const char *name, *alias[3];
} schedule_table[SCHEDULE_NAMED] = {
    [SCHEDULE_DISCRETE] = {"discrete", {"normal", "default", "automatic"}},
    [SCHEDULE_KARRAS] = {"karras", {NULL}},
    [SCHEDULE_EXPONENTIAL] = {"exponential", {NULL}},
    [SCHEDULE_AYS] = {"ays", {"align your steps", NULL}},
    [SCHEDULE_SGM_UNIFORM] = {"sgm_uniform", {NULL}},
    [SCHEDULE_SIMPLE] = {"simple", {NULL}},
};

enum { AYS_COUNT = 11 };
static const double ays_sd1[AYS_COUNT] = {14.615, 6.475, 3.861, 2.697, 1.886, 1.396,
                                          0.963,  0.652, 0.399, 0.152, 0.029};
static const double ays_sdxl[AYS_COUNT] = {14.615, 6.315, 3.771, 2.181, 1.342, 0.862,
                                           0.555,  0.380, 0.234, 0.113, 0.029};

/* --- names --- */

static const char *skip_separators(const char *s)
{
    while (*s == '_' || *s == '-' || *s == ' ')
        s++;
    return s;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

bool sample_name_equal(const char *a, const char *b)
{
    for (;; a++, b++) {
        a = skip_separators(a);
        b = skip_separators(b);
        if (lower(*a) != lower(*b))
            return false;
        if (*a == '\0')
            return true;
    }
}

kron_status schedule_find(enum schedule *out, const char *name)
{
    *out = SCHEDULE_DISCRETE;
    if (name == NULL || *name == '\0')
        return KRON_OK;
    for (int i = 0; i < SCHEDULE_NAMED; i++) {
        bool found = sample_name_equal(name, schedule_table[i].name);
        for (int k = 0; k < 3 && schedule_table[i].alias[k] != NULL; k++)
            found = found || sample_name_equal(name, schedule_table[i].alias[k]);
        if (found) {
            *out = (enum schedule)i;
            return KRON_OK;
        }
    }
    return err_set(KRON_ERR_ARGUMENT,
                   "unknown schedule \"%s\"; there are discrete (normal), karras, exponential, "
                   "ays, sgm_uniform, simple", name);
}

const char *schedule_name(int i)
{
    return i >= 0 && i < SCHEDULE_NAMED ? schedule_table[i].name : NULL;
}

/* --- levels --- */

void levels_init(struct noise_levels *l)
{
    double first = sqrt(0.00085), last = sqrt(0.012), product = 1;
    for (int t = 0; t < LEVELS_COUNT; t++) {
        double root = first + (last - first) * t / (LEVELS_COUNT - 1);
        product *= 1 - root * root;
        l->sigma[t] = sqrt((1 - product) / product);
        l->log_sigma[t] = log(l->sigma[t]);
    }
}

double t_to_sigma(const struct noise_levels *l, double t)
{
    if (!(t > 0))
        return l->sigma[0];
    if (t >= LEVELS_COUNT - 1)
        return l->sigma[LEVELS_COUNT - 1];
    int at = (int)t;
    double part = t - at;
    if (part == 0)
        return l->sigma[at];
    return exp(l->log_sigma[at] + part * (l->log_sigma[at + 1] - l->log_sigma[at]));
}

double sigma_to_t(const struct noise_levels *l, double sigma)
{
    if (!(sigma > l->sigma[0]))
        return 0;
    if (sigma >= l->sigma[LEVELS_COUNT - 1])
        return LEVELS_COUNT - 1;
    int low = 0, high = LEVELS_COUNT - 1; /* sigma[low] <= sigma < sigma[high] */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (l->sigma[middle] <= sigma)
            low = middle;
        else
            high = middle;
    }
    double part = (log(sigma) - l->log_sigma[low]) / (l->log_sigma[high] - l->log_sigma[low]);
    return low + part;
}

/* --- schedules --- */

/* Point i of n evenly spaced from first to last; n = 1 gives first. */
static double spaced(double first, double last, int i, int n)
{
    return n == 1 ? first : first + (last - first) * i / (n - 1);
}

static double ays_sigma(const double *table, int i, int n)
{
    double at = (double)i * (AYS_COUNT - 1) / n;
    int low = (int)at;
    double part = at - low;
    return exp(log(table[low]) * (1 - part) + log(table[low + 1]) * part);
}

static double karras_sigma(double most, double least, int i, int n)
{
    return pow(spaced(pow(most, 1 / 7.0), pow(least, 1 / 7.0), i, n), 7);
}

/* Step i of n, 0 <= i < n. rint() rounds halves to even, as numpy does where these rules are
 * defined. */
static double schedule_sigma(enum schedule s, int i, int n, kron_arch arch,
                             const struct noise_levels *l)
{
    const int top = LEVELS_COUNT - 1;
    switch (s) {
    case SCHEDULE_KARRAS:
        return karras_sigma(l->sigma[top], l->sigma[0], i, n);
    case SCHEDULE_EXPONENTIAL:
        return exp(spaced(l->log_sigma[top], l->log_sigma[0], i, n));
    case SCHEDULE_AYS:
        return ays_sigma(arch == KRON_ARCH_SDXL ? ays_sdxl : ays_sd1, i, n);
    case SCHEDULE_SGM_UNIFORM:
        return t_to_sigma(l, spaced(top, 0, i, n + 1));
    case SCHEDULE_SIMPLE:
        return l->sigma[top - (int)((int64_t)i * LEVELS_COUNT / n)];
    case SCHEDULE_DDIM:
        return l->sigma[1 + (n - 1 - i) * (LEVELS_COUNT / n)];
    case SCHEDULE_DDIM_TRAILING:
        return l->sigma[(int)rint(LEVELS_COUNT - i * ((double)LEVELS_COUNT / n)) - 1];
    case SCHEDULE_UNI_PC:
        return l->sigma[(int)rint((n - i) * ((double)top / n))];
    case SCHEDULE_DISCRETE:
    case SCHEDULE_NAMED:
        break;
    }
    return t_to_sigma(l, spaced(top, 0, i, n));
}

kron_status schedule_sigmas(double *out, enum schedule s, int n, kron_arch arch,
                            const struct noise_levels *l)
{
    if (n < 1 || n > SCHEDULE_MAX_STEPS)
        return err_set(KRON_ERR_ARGUMENT, "steps: %d given, 1 to %d expected", n,
                       (int)SCHEDULE_MAX_STEPS);
    for (int i = 0; i < n; i++)
        out[i] = schedule_sigma(s, i, n, arch, l);
    bool ends_at_level = s == SCHEDULE_DDIM || s == SCHEDULE_DDIM_TRAILING;
    out[n] = ends_at_level && out[n - 1] > l->sigma[0] ? l->sigma[0] : 0;
    return KRON_OK;
}

kron_status schedule_check(const double *sigmas, int n)
{
    if (n < 1)
        return err_set(KRON_ERR_ARGUMENT, "sigmas: at least two numbers expected");
    for (int i = 0; i <= n; i++) {
        if (!isfinite(sigmas[i]) || sigmas[i] < 0)
            return err_set(KRON_ERR_ARGUMENT, "sigmas: number %d is %g, finite and not negative "
                           "expected", i + 1, sigmas[i]);
        if (i > 0 && sigmas[i] >= sigmas[i - 1])
            return err_set(KRON_ERR_ARGUMENT, "sigmas: number %d is %g after %g, falling numbers "
                           "expected", i + 1, sigmas[i], sigmas[i - 1]);
    }
    return KRON_OK;
}

/* A little is added because 0.29f * 100 is 29 in float, where stable-diffusion.cpp multiplies, and
 * 28.999999 here. */
int schedule_first_step(int n_steps, double strength)
{
    double share = fmin(fmax(strength, 0), 1);
    int whole = (int)(share * n_steps + 1e-4);
    return whole >= n_steps ? 0 : n_steps - whole - 1;
}
