/* SPDX-License-Identifier: MIT
 * What stands in a tag after <lora: : a name, strengths, and fields KEY=VALUE. te= and unet= are
 * A1111's; lbw=, start=, stop= and step=A-B are sd-webui-lora-block-weight's; a strength that is a
 * curve, VALUE@PLACE,VALUE@PLACE, is sd-webui-loractl's. */
#include "model/prompt_tag.h"
#include <float.h>
#include <math.h>
#include <string.h>

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static size_t skip_digits(const char *s, size_t at, size_t len)
{
    while (at < len && s[at] >= '0' && s[at] <= '9')
        at++;
    return at;
}

size_t prompt_number(const char *s, size_t len, double *out)
{
    char copy[64];
    size_t at = 0;
    if (at < len && (s[at] == '+' || s[at] == '-'))
        at++;
    size_t first = at;
    at = skip_digits(s, at, len);
    size_t digits = at - first;
    if (at < len && s[at] == '.') {
        size_t point = at;
        at = skip_digits(s, at + 1, len);
        digits += at - point - 1;
    }
    if (digits == 0)
        return 0;
    if (at < len && (s[at] == 'e' || s[at] == 'E')) {
        size_t exponent = at + 1;
        if (exponent < len && (s[exponent] == '+' || s[exponent] == '-'))
            exponent++;
        size_t end = skip_digits(s, exponent, len);
        at = end > exponent ? end : at;
    }
    if (at >= sizeof copy)
        return 0;
    size_t plus = s[0] == '+' ? 1 : 0;
    memcpy(copy, s + plus, at - plus);
    copy[at - plus] = '\0';
    return str_to_double(copy, out) && isfinite(*out) ? at : 0;
}

kron_status prompt_copy(struct arena *mem, const char *s, size_t len, const char **out)
{
    char *copy = arena_alloc(mem, len + 1);
    if (copy == NULL)
        return mem->status;
    if (len > 0)
        memcpy(copy, s, len);
    *out = copy;
    return KRON_OK;
}

/* Names the text, cut to what fits on a line: at a control character, not inside a character. */
kron_status prompt_tag_error(kron_status status, const struct tag_text *t, const char *why)
{
    size_t shown = 0;
    while (shown < t->len && shown < 80 && (uint8_t)t->s[shown] >= ' ')
        shown++;
    while (shown > 0 && shown < t->len && ((uint8_t)t->s[shown] & 0xc0) == 0x80)
        shown--;
    const char *more = shown < t->len ? "..." : "";
    return err_set(status, "%s '%.*s%s': %s", t->what, (int)shown, t->s, more, why);
}

bool prompt_is_word(const char *s, size_t len, const char *lower)
{
    size_t i = 0;
    for (; i < len && lower[i] != '\0'; i++) {
        char c = s[i] >= 'A' && s[i] <= 'Z' ? (char)(s[i] - 'A' + 'a') : s[i];
        if (c != lower[i])
            return false;
    }
    return i == len && lower[i] == '\0';
}

/* --- fields --- */

struct span {
    const char *s;
    size_t len;
};

static struct span trim(const char *s, size_t len)
{
    while (len > 0 && is_blank(s[0])) {
        s++;
        len--;
    }
    while (len > 0 && is_blank(s[len - 1]))
        len--;
    return (struct span){s, len};
}

/* Cuts what stands before `mark` off `rest`: the whole where there is none (then rest is empty,
 * with s NULL). */
static struct span cut(struct span *rest, char mark)
{
    const char *at = rest->len > 0 ? memchr(rest->s, mark, rest->len) : NULL;
    struct span head = *rest;
    if (at == NULL) {
        *rest = (struct span){NULL, 0};
        return head;
    }
    head.len = (size_t)(at - rest->s);
    *rest = (struct span){at + 1, rest->len - head.len - 1};
    return head;
}

enum key { TE, UNET, LBW, START, STOP, STEP, SCALE, MASK, REGION, N_KEYS };

struct fields {
    const struct tag_text *tag;
    struct arena *mem;
    struct prompt_adapter *a;
    struct span positional[2];
    int n_positional;
    bool seen[N_KEYS];
    bool start_in_numbers, stop_in_numbers;
};

static kron_status wrong(const struct fields *f, const char *why)
{
    return prompt_tag_error(KRON_ERR_ARGUMENT, f->tag, why);
}

static bool whole_number(struct span v, double *out)
{
    v = trim(v.s, v.len);
    return v.len > 0 && prompt_number(v.s, v.len, out) == v.len && fabs(*out) <= FLT_MAX;
}

/* A number with a point is a share of the steps, 0 to 1; without one a step, from 1. 0 is the
 * beginning either way. */
static bool read_place(struct span v, double *out, bool *in_numbers)
{
    enum { MOST = 1000000 };
    if (!whole_number(v, out) || *out < 0)
        return false;
    *in_numbers = memchr(v.s, '.', v.len) == NULL && *out != 0;
    return *in_numbers ? *out == floor(*out) && *out <= MOST : *out <= 1;
}

static kron_status add_point(struct fields *f, struct prompt_point *p, struct span item)
{
    struct span place = item, factor = cut(&place, '@');
    if (!whole_number(factor, &p->factor) || !whole_number(place, &p->at) || p->at < 0)
        return wrong(f, "a curve is made of VALUE@PLACE with commas between them");
    if (p > f->a->points && p->at < p[-1].at)
        return wrong(f, "the places of a curve must not fall");
    return KRON_OK;
}

static bool is_curve(struct span v)
{
    return v.len > 0 && memchr(v.s, '@', v.len) != NULL;
}

/* VALUE@PLACE,VALUE@PLACE,...: places up to 1 are shares, else they are steps, from 1. */
static kron_status read_curve(struct fields *f, struct span v)
{
    size_t n = 1;
    if (f->a->n_points > 0)
        return wrong(f, "more than one curve");
    for (size_t i = 0; i < v.len; i++)
        n += v.s[i] == ',';
    struct prompt_point *points = arena_alloc(f->mem, n * sizeof *points);
    if (points == NULL)
        return f->mem->status;
    f->a->points = points;
    for (size_t i = 0; i < n; i++)
        KRON_TRY(add_point(f, &points[i], cut(&v, ',')));
    f->a->n_points = n;
    f->a->points_in_numbers = points[n - 1].at > 1;
    return KRON_OK;
}

/* The UNet's strength: a number or a curve. */
static kron_status read_unet(struct fields *f, struct span v)
{
    f->a->unet_strength = 1;
    if (is_curve(v))
        return read_curve(f, v);
    return whole_number(v, &f->a->unet_strength) ? KRON_OK : wrong(f, "a strength is not a number");
}

/* The text encoders' strength. A curve that is meant for the UNet too gives its first value:
 * text is encoded before the first step. `alone`: it is for them only. */
static kron_status read_te(struct fields *f, struct span v, bool alone)
{
    if (is_curve(v)) {
        struct span first = cut(&v, '@');
        if (!alone && whole_number(first, &f->a->te_strength))
            return KRON_OK;
        return wrong(f, alone ? "the text encoders' strength is one number: text is encoded before "
                                "the first step"
                              : "a curve is made of VALUE@PLACE with commas between them");
    }
    return whole_number(v, &f->a->te_strength) ? KRON_OK : wrong(f, "a strength is not a number");
}

static kron_status read_limit(struct fields *f, struct span v, bool is_stop)
{
    double *to = is_stop ? &f->a->stop : &f->a->start;
    bool *in_numbers = is_stop ? &f->stop_in_numbers : &f->start_in_numbers;
    if (!read_place(v, to, in_numbers))
        return wrong(f, "start and stop are a share of the steps with a point, 0.0 to 1.0, or the "
                        "number of a step");
    if (is_stop && *to == 0)
        return wrong(f, "stop is above 0");
    return KRON_OK;
}

/* A-B is start=A:stop=B; a curve multiplies the UNet's strength. */
static kron_status read_step(struct fields *f, struct span v)
{
    if (is_curve(v))
        return read_curve(f, v);
    struct span stop = v, start = cut(&stop, '-');
    if (stop.s == NULL)
        return wrong(f, "step= is a range A-B or a curve VALUE@PLACE,VALUE@PLACE,...");
    if (f->seen[START] || f->seen[STOP])
        return wrong(f, "a range of steps stands there twice");
    f->seen[START] = f->seen[STOP] = true;
    KRON_TRY(read_limit(f, start, false));
    return read_limit(f, stop, true);
}

static kron_status read_region(struct fields *f, struct span v)
{
    double *r = f->a->region;
    bool good = true;
    for (int i = 0; i < 4; i++)
        good = whole_number(cut(&v, ','), &r[i]) && good;
    if (!good || v.s != NULL || !(r[0] >= 0 && r[0] < r[2] && r[2] <= 1) ||
        !(r[1] >= 0 && r[1] < r[3] && r[3] <= 1))
        return wrong(f, "region= is LEFT,TOP,RIGHT,BOTTOM, shares of the image from 0 to 1");
    return KRON_OK;
}

static kron_status read_scale(struct fields *f, struct span v)
{
    if (!whole_number(v, &f->a->scale) || f->a->scale == 0)
        return wrong(f, "scale= is a number other than 0");
    return KRON_OK;
}

static kron_status read_text(struct fields *f, struct span v, const char **to)
{
    v = trim(v.s, v.len);
    if (v.len == 0 || memchr(v.s, '\0', v.len) != NULL)
        return wrong(f, "lbw= and mask= need a value");
    return prompt_copy(f->mem, v.s, v.len, to);
}

static kron_status read_value(struct fields *f, enum key key, struct span v)
{
    switch (key) {
    case TE:
        return read_te(f, v, true);
    case UNET:
        return read_unet(f, v);
    case LBW:
        return read_text(f, v, &f->a->blocks);
    case START:
    case STOP:
        return read_limit(f, v, key == STOP);
    case STEP:
        return read_step(f, v);
    case SCALE:
        return read_scale(f, v);
    case MASK:
        return read_text(f, v, &f->a->mask);
    default:
        return read_region(f, v);
    }
}

static kron_status read_named(struct fields *f, struct span name, struct span value)
{
    static const struct {
        const char *name;
        enum key key;
    } keys[] = {{"te", TE},       {"unet", UNET}, {"lbw", LBW},      {"w", LBW},
                {"start", START}, {"stop", STOP}, {"end", STOP},     {"step", STEP},
                {"scale", SCALE}, {"mask", MASK}, {"region", REGION}};
    name = trim(name.s, name.len);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (!prompt_is_word(name.s, name.len, keys[i].name))
            continue;
        if (f->seen[keys[i].key])
            return wrong(f, "a field stands there twice");
        f->seen[keys[i].key] = true;
        return read_value(f, keys[i].key, value);
    }
    return prompt_tag_error(KRON_ERR_UNSUPPORTED, f->tag,
                            "the named fields are te= unet= lbw= start= stop= step= scale= mask= "
                            "region=");
}

static kron_status read_field(struct fields *f, struct span field)
{
    struct span value = field, name = cut(&value, '=');
    if (value.s != NULL)
        return read_named(f, name, value);
    if (f->n_positional == 2)
        return wrong(f, "more than two strengths");
    f->positional[f->n_positional++] = field;
    return KRON_OK;
}

/* Named strengths come before those by position, which must be numbers all the same. Without a
 * UNet strength it is the text encoders', without that 1. */
static kron_status settle_strengths(struct fields *f)
{
    struct prompt_adapter *a = f->a;
    struct span first = f->positional[0], second = f->positional[1];
    double unused;
    if (f->n_positional > 0 && f->seen[TE] && !is_curve(first) && !whole_number(first, &unused))
        return wrong(f, "a strength is not a number");
    if (f->n_positional > 1 && f->seen[UNET] && !whole_number(second, &unused))
        return wrong(f, "a strength is not a number");
    if (f->n_positional > 0 && !f->seen[TE])
        KRON_TRY(read_te(f, first, f->n_positional > 1 || f->seen[UNET]));
    if (f->seen[UNET])
        return KRON_OK;
    if (f->n_positional > 1)
        return read_unet(f, second);
    if (f->n_positional > 0 && is_curve(first))
        return read_unet(f, first);
    a->unet_strength = a->te_strength;
    return KRON_OK;
}

static kron_status settle_range(struct fields *f)
{
    struct prompt_adapter *a = f->a;
    bool both = a->start > 0 && a->stop > 0;
    if (both && f->start_in_numbers != f->stop_in_numbers)
        return wrong(f, "start and stop are both shares with a point or both step numbers");
    if (both && a->start >= a->stop)
        return wrong(f, "start is not before stop");
    a->in_numbers = f->start_in_numbers || f->stop_in_numbers;
    return KRON_OK;
}

kron_status prompt_tag_read(struct arena *mem, const struct tag_text *t, const char *body,
                            size_t len, struct prompt_adapter *out)
{
    struct span rest = {body, len}, head = cut(&rest, ':'), name = trim(head.s, head.len);
    struct fields f = {.tag = t, .mem = mem, .a = out};
    *out = (struct prompt_adapter){.te_strength = 1, .unet_strength = 1};
    if (name.len == 0)
        return wrong(&f, "no name");
    if (memchr(name.s, '\0', name.len) != NULL)
        return wrong(&f, "a NUL in the name");
    KRON_TRY(prompt_copy(mem, name.s, name.len, &out->name));
    while (rest.s != NULL)
        KRON_TRY(read_field(&f, cut(&rest, ':')));
    KRON_TRY(settle_strengths(&f));
    return settle_range(&f);
}
