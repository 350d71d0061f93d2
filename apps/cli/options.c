/* SPDX-License-Identifier: MIT
 * The table of options: the parser and the help text both read it. Names, meaning and defaults are
 * those of stable-diffusion.cpp's sd-cli; what is Kron's own is marked so. */
#include "cli.h"
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum kind { GROUP, FLAG, TEXT, LIST, WHOLE, SEED, REAL, CHOICE, SIGMAS, TILE, SHARE, BYTES };

/* A choice that begins with '!' is known from stable-diffusion.cpp and not here yet. */
static const char *const modes[] = {"img_gen",      "metadata",        "help",    "txt2img",
                                    "img2img",      "adapter_info",    "adapter_convert",
                                    "convert",      "!adetailer",      "!vid_gen",
                                    "!upscale",     NULL};
static const char *const backends[] = {"cpu", "ref", NULL};
/* In the order of kron_type, from KRON_TYPE_F32 on. */
static const char *const types[] = {"f32",    "f16",  "bf16", "f8_e4m3", "f8_e5m2", "q4_0",
                                    "q4_1",   "q5_0", "q5_1", "q8_0",    "q2_K",    "q3_K",
                                    "q4_K",   "q5_K", "q6_K", "iq4_nl",  "iq4_xs",  "mxfp4",
                                    "nvfp4",  "tq1_0", "tq2_0", NULL};
static const char *const namings[] = {"keep",    "kohya",     "kohya_sgm", "lycoris",
                                      "diffusers", "comfy", NULL};
static const char *const forms[] = {"keep", "lora", "lokr", "full", NULL};
static const char *const rngs[] = {"cuda", "cpu", "!std_default", NULL};
static const char *const predictions[] = {"eps",        "v",           "!edm_v", "!sd3_flow",
                                          "!flux_flow", "!flux2_flow", NULL};
static const char *const applies[] = {"auto", "immediately", "at_runtime", NULL};
static const char *const computes[] = {"f32", "int8", NULL};
static const char *const previews[] = {"none", "proj", "vae", "!tae", NULL};
static const char *const formats[] = {"text", "json", NULL};

struct option {
    enum kind kind;
    const char *name, *alt;
    size_t at;
    double min, max; /* WHOLE, SEED, REAL */
    const char *const *choices;
    const char *arg, *help;
};

#define GROUP_OF(title) {.kind = GROUP, .name = title}
#define FLAG_(n, a, field, h) \
    {.kind = FLAG, .name = n, .alt = a, .at = offsetof(struct options, field), .help = h}
#define TEXT_(n, a, field, what, h)                                                     \
    {.kind = TEXT, .name = n, .alt = a, .at = offsetof(struct options, field), .arg = what, \
     .help = h}
#define LIST_(n, a, field, what, h)                                                     \
    {.kind = LIST, .name = n, .alt = a, .at = offsetof(struct options, field), .arg = what, \
     .help = h}
#define NUMBER_(k, n, a, field, lo, hi, h)                                                   \
    {.kind = k, .name = n, .alt = a, .at = offsetof(struct options, field), .min = lo, .max = hi, \
     .arg = "N", .help = h}
#define CHOICE_(n, a, field, list, h)                                                          \
    {.kind = CHOICE, .name = n, .alt = a, .at = offsetof(struct options, field), .choices = list, \
     .arg = "NAME", .help = h}

static const struct option table[] = {
    GROUP_OF("General"),
    CHOICE_("--mode", "-M", mode, modes,
            "what to do (img_gen); txt2img and img2img are other names of img_gen"),
    FLAG_("--help", "-h", help, "show this list"),
    FLAG_("--version", NULL, version, "show the version"),
    FLAG_("--verbose", "-v", verbose, "show sizes, plans, routes and buffers"),
    FLAG_("--color", NULL, color, "colour messages by their level"),

    GROUP_OF("Model"),
    TEXT_("--model", "-m", model, "FILE",
          "checkpoint (.safetensors, .gguf, .ckpt; see docs/files.md) or diffusers folder"),
    TEXT_("--diffusion-model", NULL, diffusion_model, "FILE",
          "UNet in a file of its own, of the same formats"),
    TEXT_("--clip_l", NULL, clip_l, "FILE", "CLIP-L text encoder in a file of its own"),
    TEXT_("--clip_g", NULL, clip_g, "FILE", "OpenCLIP text encoder in a file of its own"),
    TEXT_("--vae", NULL, vae, "FILE", "VAE to use in place of the model's"),
    TEXT_("--lora-model-dir", NULL, lora_dir, "FOLDER",
          "where <lora:NAME:STRENGTH> in a prompt finds NAME.safetensors, NAME.gguf or the like"),
    LIST_("--lora", NULL, loras, "FILE[:S]",
          "Kron's own: an adapter, with its strength, FILE:TEXT_S:UNET_S, and fields :KEY=VALUE as "
          "in a tag (docs/adapters.md); may be given again"),
    TEXT_("--lbw-presets", NULL, lbw_presets, "FILE",
          "Kron's own: named block weights for lbw=, lines NAME:NUMBER,NUMBER,..."),
    TEXT_("--embd-dir", NULL, embd_dir, "FOLDER",
          "textual inversion: WORD in a prompt is the vectors of FOLDER/WORD.safetensors, "
          ".pt or the like"),
    CHOICE_("--lora-apply-mode", NULL, apply, applies,
            "how adapters act: merged into memory once, or at run time on the stored weights "
            "(auto: by cost, layer by layer)"),
    FLAG_("--strict", NULL, strict,
          "Kron's own: an adapter tensor that fits no layer ends the program"),
    CHOICE_("--prediction", NULL, prediction, predictions,
            "what the UNet predicts (found out from the model)"),
    CHOICE_("--type", NULL, type, types,
            "type of the weights that are used, or that convert and adapter_convert write (as in "
            "the file)"),
    TEXT_("--tensor-type-rules", NULL, type_rules, "RULES",
          "types by name, PATTERN=TYPE,PATTERN=TYPE: the first pattern that is found in a tensor's "
          "name tells its type in place of --type"),
    TEXT_("--imat-in", NULL, imat_in, "FILE",
          "importance matrix: what --type and convert keep best"),
    TEXT_("--imat-out", NULL, imat_out, "FILE",
          "collect an importance matrix while drawing, added to that of --imat-in"),
    TEXT_("--quant-cache", NULL, quant_cache, "FOLDER",
          "Kron's own: where weights that --type made are kept for the next time"),
    CHOICE_("--compute", NULL, compute, computes,
            "Kron's own: what the UNet's linear layers multiply: int8 is about twice as fast "
            "and nearly as good (f32)"),
    CHOICE_("--backend", NULL, backend, backends, "device: cpu, or ref, slow and plain (the best)"),
    NUMBER_(WHOLE, "--threads", "-t", threads, -1, 1024, "threads, -1 or 0: one per core (-1)"),
    {.kind = BYTES, .name = "--max-vram", .alt = "--max-memory",
     .at = offsetof(struct options, max_memory), .arg = "SIZE",
     .help = "memory to keep within, weights and buffers together, as 3G or 800M; a plain number "
             "is GiB, -1 or 0: no limit (-1); --max-memory is Kron's own name"},

    GROUP_OF("Prompt and pictures to start from"),
    TEXT_("--prompt", "-p", prompt, "TEXT", "what to draw"),
    TEXT_("--negative-prompt", "-n", negative, "TEXT", "what not to draw (\"\")"),
    TEXT_("--prompt-file", NULL, prompt_file, "FILE", "read the prompt from a file"),
    TEXT_("--negative-prompt-file", NULL, negative_file, "FILE",
          "read the negative prompt from a file"),
    TEXT_("--init-img", "-i", init_path, "FILE", "picture to start from, PNG or JPEG"),
    TEXT_("--mask", NULL, mask_path, "FILE", "white is drawn anew, black stays; needs --init-img"),
    NUMBER_(REAL, "--strength", NULL, strength, 0, 1,
            "how much of the init image is redrawn, 0 to 1 (0.75)"),

    GROUP_OF("Size and number"),
    NUMBER_(WHOLE, "--width", "-W", width, 8, MAX_SIDE,
            "pixels, a multiple of 8 (512, or the init image's)"),
    NUMBER_(WHOLE, "--height", "-H", height, 8, MAX_SIDE,
            "pixels, a multiple of 8 (512, or the init image's)"),
    NUMBER_(WHOLE, "--batch-count", "-b", batch, 1, 100000, "pictures to draw (1)"),

    GROUP_OF("Sampling"),
    NUMBER_(WHOLE, "--steps", NULL, steps, 1, MAX_STEPS, "steps (20)"),
    NUMBER_(REAL, "--cfg-scale", NULL, cfg, 0, 1000, "guidance; 1: none (7)"),
    TEXT_("--sampling-method", NULL, sampler, "NAME", "sampler (euler_a)"),
    TEXT_("--scheduler", NULL, schedule, "NAME", "schedule of noise levels (discrete)"),
    {.kind = SIGMAS, .name = "--sigmas", .arg = "A,B,...,0",
     .help = "noise levels of your own, falling, the last 0; steps are one fewer"},
    NUMBER_(SEED, "--seed", "-s", seed, -9e18, 9e18, "seed, below 0: a random one (42)"),
    CHOICE_("--rng", NULL, rng, rngs, "start noise as torch makes it on a GPU or CPU (cuda)"),
    CHOICE_("--sampler-rng", NULL, sampler_rng, rngs, "noise that samplers add (as --rng)"),
    NUMBER_(REAL, "--eta", NULL, eta, 0, 100,
            "noise that ancestral samplers and DDIM add (the sampler's own)"),
    NUMBER_(WHOLE, "--clip-skip", NULL, clip_skip, -1, 100,
            "text encoder layers from the end, 1: the last, 2: the one before, below 1: the "
            "model's own (-1)"),

    GROUP_OF("VAE"),
    FLAG_("--vae-tiling", NULL, vae_tiling, "decode and encode in tiles: less memory; without it only where memory is short"),
    {.kind = TILE, .name = "--vae-tile-size", .arg = "N or NxN",
     .help = "width and height of a tile in latent pixels (32x32, or less that fits)"},
    {.kind = SHARE, .name = "--vae-relative-tile-size", .arg = "X or XxY",
     .help = "the same as a share of the picture, below 1, or as a number of tiles side by side; "
             "goes before --vae-tile-size"},
    NUMBER_(REAL, "--vae-tile-overlap", NULL, vae_overlap, 0, 0.5,
            "share of a tile that overlaps, 0 to 0.5 (0.5)"),

    GROUP_OF("Output"),
    TEXT_("--output", "-o", output, "FILE",
          "picture to write, .png or .jpg; %d or %03d: its number (./output.png)"),
    NUMBER_(WHOLE, "--output-begin-idx", NULL, begin, 0, 1e9,
            "first number in names (0 with %d, else 1)"),
    FLAG_("--disable-image-metadata", NULL, no_metadata, "keep no prompt and settings in the file"),
    CHOICE_("--preview", NULL, preview, previews, "write previews while drawing (none)"),
    TEXT_("--preview-path", NULL, preview_path, "FILE", "preview to write (./preview.png)"),
    NUMBER_(WHOLE, "--preview-interval", NULL, preview_interval, 1, MAX_STEPS,
            "steps between previews (1)"),

    GROUP_OF("Measuring (Kron's own)"),
    FLAG_("--profile", NULL, profile,
          "show where the time goes, by kind of operation, and how near to the device's peak"),
    TEXT_("--profile-trace", NULL, profile_trace, "FILE",
          "each operation as an event, JSON for chrome://tracing or Perfetto"),

    GROUP_OF("Modes adapter_info, adapter_convert and convert (Kron's own)"),
    FLAG_("--json", NULL, json, "adapter_info: JSON in place of text"),
    LIST_("--input", NULL, inputs, "FILE[:S]",
          "adapter_convert: adapter to read, with its strength or FILE:TEXT_S:UNET_S; several are "
          "added up"),
    CHOICE_("--naming", NULL, naming, namings, "adapter_convert: names to write; needs -m (keep)"),
    CHOICE_("--form", NULL, form, forms, "adapter_convert: what to write (keep)"),
    NUMBER_(WHOLE, "--rank", NULL, rank, 1, 1e6,
            "adapter_convert: most ranks of a LoRA or of a LoKr's second factor (no limit)"),
    NUMBER_(REAL, "--energy", NULL, energy, 0, 1,
            "adapter_convert: share of the squared singular values that the ranks must hold"),
    NUMBER_(WHOLE, "--factor", NULL, factor, 1, 1e6,
            "adapter_convert: most rows of a LoKr's first factor (8)"),

    GROUP_OF("Mode metadata"),
    TEXT_("--image", NULL, image, "FILE", "picture whose texts are shown"),
    CHOICE_("--metadata-format", NULL, metadata_format, formats, "how (text)"),
    FLAG_("--metadata-brief", NULL, metadata_brief, "cut long values"),
    FLAG_("--metadata-all", NULL, metadata_all, "list every chunk or segment of the file"),
    FLAG_("--metadata-raw", NULL, metadata_raw, "show the first bytes of chunks that are not text"),
};

enum { N_OPTIONS = sizeof table / sizeof *table };

void options_init(struct options *o)
{
    *o = (struct options){
        .backend = -1, .type = -1, .prediction = -1, .threads = -1,
        .output = "./output.png", .begin = -1, .preview_path = "./preview.png",
        .preview_interval = 1, .width = SIZE_UNSET, .height = SIZE_UNSET, .batch = 1,
        .steps = 20, .cfg = 7, .eta = -1, .strength = 0.75, .seed = 42, .clip_skip = -1,
        .sampler_rng = -1, .vae_overlap = 0.5,
    };
}

void options_free(struct options *o)
{
    free(o->sigmas);
    free(o->prompt_text);
    free(o->negative_text);
    free(o->files.at);
    free(o->inputs.at);
    free(o->loras.at);
}

/* --- help --- */

/* Words of `text` between the columns 34 and 98. */
static void print_wrapped(const char *text)
{
    enum { FIRST = 34, LAST = 98 };
    int column = FIRST;
    for (int word; *text != '\0'; text += word) {
        text += strspn(text, " ");
        word = (int)strcspn(text, " ");
        if (column > FIRST && column + 1 + word > LAST) {
            printf("\n%*s", FIRST, "");
            column = FIRST;
        }
        column += printf("%s%.*s", column > FIRST ? " " : "", word, text);
    }
    printf("\n");
}

static void print_choices(const struct option *o, char *text, size_t size)
{
    size_t len = (size_t)snprintf(text, size, "%s", o->help);
    const char *joint = "; one of ";
    for (int i = 0; o->choices != NULL && o->choices[i] != NULL && len < size; i++)
        if (o->choices[i][0] != '!') {
            len += (size_t)snprintf(text + len, size - len, "%s%s", joint, o->choices[i]);
            joint = ", ";
        }
    bool sampler = strcmp(o->name, "--sampling-method") == 0;
    if (!sampler && strcmp(o->name, "--scheduler") != 0)
        return;
    for (int i = 0; len < size; i++) {
        const char *name = sampler ? kron_sampler_name(i) : kron_schedule_name(i);
        if (name == NULL)
            break;
        len += (size_t)snprintf(text + len, size - len, "%s%s", joint, name);
        joint = ", ";
    }
}

void options_help(void)
{
    printf("usage: sd-cli -m MODEL -p PROMPT [options]\n"
           "Draws pictures with Stable Diffusion models and adapters. Options are those of\n"
           "stable-diffusion.cpp; docs/cli.md says more. Defaults stand in parentheses.\n");
    for (int i = 0; i < N_OPTIONS; i++) {
        const struct option *o = &table[i];
        char names[64], text[1024];
        if (o->kind == GROUP) {
            printf("\n%s:\n", o->name);
            continue;
        }
        snprintf(names, sizeof names, "%s%s%s%s%s", o->alt != NULL ? o->alt : "",
                 o->alt != NULL ? ", " : "", o->name, o->arg != NULL ? " " : "",
                 o->arg != NULL ? o->arg : "");
        printf("  %-31s ", names);
        if (strlen(names) > 31)
            printf("\n%34s", "");
        print_choices(o, text, sizeof text);
        print_wrapped(text);
    }
}

/* --- parsing --- */

static bool is_named(const struct option *o, const char *word)
{
    return o->kind != GROUP && (strcmp(o->name, word) == 0 ||
                                (o->alt != NULL && strcmp(o->alt, word) == 0));
}

static const struct option *find(const char *word)
{
    for (int i = 0; i < N_OPTIONS; i++)
        if (is_named(&table[i], word))
            return &table[i];
    return NULL;
}

bool options_find(bool (*fn)(const char *name, void *user), void *user)
{
    for (int i = 0; i < N_OPTIONS; i++)
        if (table[i].kind != GROUP &&
            (fn(table[i].name, user) || (table[i].alt != NULL && fn(table[i].alt, user))))
            return true;
    return false;
}

static bool to_real(const char *s, double *out)
{
    char *end;
    /* strtod() takes blanks, inf, nan and hexadecimal as well: not here. */
    if (*s == '\0' || strspn(s, "+-0123456789.eE") != strlen(s))
        return false;
    *out = strtod(s, &end);
    return *end == '\0' && isfinite(*out);
}

static bool to_whole(const char *s, int64_t *out)
{
    char *end;
    if (*s == '\0' || strspn(s, "+-0123456789") != strlen(s))
        return false;
    errno = 0;
    *out = strtoll(s, &end, 10);
    return *end == '\0' && errno == 0;
}

static bool set_whole(const struct option *o, void *field, const char *word, const char *value)
{
    int64_t v;
    if (o->kind == SEED) {
        if (!to_whole(value, &v))
            return complain("%s %s: expected a whole number below 2^63, negative for a random seed",
                            word, value);
        *(int64_t *)field = v;
        return true;
    }
    if (!to_whole(value, &v) || v < (int64_t)o->min || v > (int64_t)o->max)
        return complain("%s %s: expected a whole number from %.0f to %.0f", word, value, o->min,
                        o->max);
    *(int *)field = (int)v;
    return true;
}

static bool set_choice(const struct option *o, int *field, const char *word, const char *value)
{
    char list[256] = "";
    for (int i = 0; o->choices[i] != NULL; i++) {
        const char *name = o->choices[i];
        if (strcasecmp(name, value) == 0) {
            *field = i;
            return true;
        }
        if (name[0] == '!' && strcmp(name + 1, value) == 0)
            return complain("%s %s is not in this version of Kron", word, value);
        if (name[0] != '!')
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s",
                     list[0] != '\0' ? ", " : "", name);
    }
    return complain("%s %s: expected one of %s", word, value, list);
}

static bool set_sigmas(struct options *o, const char *word, const char *value)
{
    double *list = calloc(MAX_STEPS + 1, sizeof *list);
    int n = 0;
    bool good = list != NULL;
    for (const char *s = value; good; s++) {
        char number[32];
        size_t len = strcspn(s, ",");
        good = len < sizeof number && n <= MAX_STEPS;
        if (!good)
            break;
        memcpy(number, s, len);
        number[len] = '\0';
        good = to_real(number, &list[n]) && list[n] >= 0 && (n == 0 || list[n] < list[n - 1]);
        n++;
        s += len;
        if (*s == '\0')
            break;
    }
    if (!good || n < 2 || list[n - 1] != 0) {
        free(list);
        return complain("%s %s: expected 2 to %d falling numbers with commas between them, the "
                        "last 0", word, value, MAX_STEPS + 1);
    }
    free(o->sigmas);
    o->sigmas = list;
    o->n_sigmas = n;
    return true;
}

/* X or XxY: two numbers, or one twice. */
static bool to_pair(const char *value, double *a, double *b)
{
    char first[16];
    size_t len = strcspn(value, "x");
    if (len >= sizeof first)
        return false;
    memcpy(first, value, len);
    first[len] = '\0';
    if (!to_real(first, a))
        return false;
    *b = *a;
    return value[len] == '\0' || to_real(value + len + 1, b);
}

static bool set_tile(struct options *o, const char *word, const char *value)
{
    double a, b, most = MAX_SIDE / 8;
    if (!to_pair(value, &a, &b) || a != floor(a) || b != floor(b) || a < 8 || b < 8 || a > most ||
        b > most)
        return complain("%s %s: expected sides from 8 to %d latent pixels, as 32 or 48x32", word,
                        value, MAX_SIDE / 8);
    o->vae_tile_w = (int)a;
    o->vae_tile_h = (int)b;
    return true;
}

static bool set_share(struct options *o, const char *word, const char *value)
{
    double a, b;
    if (!to_pair(value, &a, &b) || a <= 0 || b <= 0 || a > MAX_SIDE || b > MAX_SIDE)
        return complain("%s %s: expected shares of the picture below 1, or numbers of tiles, as "
                        "0.5 or 3x2", word, value);
    o->vae_relative_w = a;
    o->vae_relative_h = b;
    return true;
}

/* 3G, 800M, 512K or 3, which is GiB as stable-diffusion.cpp has it; units are powers of 1024, with
 * or without B or iB behind. -1 and 0: no limit. */
static bool set_bytes(int64_t *field, const char *word, const char *value)
{
    static const struct {
        char unit;
        double bytes;
    } units[] = {{'K', 0x1p10}, {'M', 0x1p20}, {'G', 0x1p30}, {'T', 0x1p40}};
    char number[32];
    size_t len = strspn(value, "+-.0123456789");
    double n = 0, unit = 0x1p30;
    const char *rest = value + len;
    bool good = len < sizeof number;
    if (good) {
        memcpy(number, value, len);
        number[len] = '\0';
        good = to_real(number, &n);
    }
    for (size_t i = 0; good && *rest != '\0' && i < sizeof units / sizeof *units; i++)
        if ((*rest & ~0x20) == units[i].unit) {
            unit = units[i].bytes;
            rest += strcasecmp(rest + 1, "iB") == 0 ? 3 : strcasecmp(rest + 1, "B") == 0 ? 2 : 1;
            break;
        }
    good = good && *rest == '\0' && n * unit < 0x1p60 && (n >= 0 || n == -1);
    if (good && n > 0 && n * unit < 0x1p26)
        return complain("%s %s: expected at least 64M", word, value);
    if (!good)
        return complain("%s %s: expected a size as 3G or 800M, or -1 for no limit", word, value);
    *field = n > 0 ? (int64_t)(n * unit) : 0;
    return true;
}

static bool add_word(struct word_list *list, const char *word)
{
    const char **at = realloc(list->at, ((size_t)list->n + 1) * sizeof *at);
    if (at == NULL)
        return complain("out of memory");
    list->at = at;
    at[list->n++] = word;
    return true;
}

static bool set(struct options *o, const struct option *opt, const char *word, const char *value)
{
    void *field = (char *)o + opt->at;
    double real;
    switch (opt->kind) {
    case TEXT:
        *(const char **)field = value;
        return true;
    case LIST:
        return add_word(field, value);
    case WHOLE:
    case SEED:
        return set_whole(opt, field, word, value);
    case REAL:
        if (!to_real(value, &real) || real < opt->min || real > opt->max)
            return complain("%s %s: expected a number from %g to %g", word, value, opt->min,
                            opt->max);
        *(double *)field = real;
        return true;
    case CHOICE:
        return set_choice(opt, field, word, value);
    case SIGMAS:
        return set_sigmas(o, word, value);
    case TILE:
        return set_tile(o, word, value);
    case SHARE:
        return set_share(o, word, value);
    case BYTES:
        return set_bytes(field, word, value);
    default:
        return false;
    }
}

/* Another option where a value should be means that the value was forgotten. A prompt may begin
 * with a dash, so only names of options count. */
static bool is_value(const char *word)
{
    return word != NULL && !(word[0] == '-' && word[1] == '-' &&
                             (find(word) != NULL || known_find(word) != NULL));
}

/* Options that are not in the table. Moves *i over a value of theirs. */
static bool parse_other(struct options *o, const char *word, int argc, int *i)
{
    const struct known *k = known_find(word);
    if (k != NULL && k->harmless != NULL) {
        note("%s has no effect here: %s", word, k->harmless);
        *i += k->has_value && *i + 1 < argc ? 1 : 0;
        return true;
    }
    if (k != NULL)
        return complain("%s is not in this version of Kron", word);
    if (word[0] != '-')
        return add_word(&o->files, word);
    const char *near = known_nearest(word);
    if (near != NULL)
        return complain("there is no option %s; did you mean %s?", word, near);
    return complain("there is no option %s; sd-cli -h lists them", word);
}

bool options_parse(struct options *o, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        const struct option *opt = find(word);
        if (opt == NULL) {
            if (!parse_other(o, word, argc, &i))
                return false;
        } else if (opt->kind == FLAG) {
            *(int *)((char *)o + opt->at) = 1;
        } else {
            const char *value = i + 1 < argc ? argv[++i] : NULL;
            if (!is_value(value))
                return complain("%s needs a value: %s", word, opt->arg);
            if (!set(o, opt, word, value))
                return false;
        }
    }
    if (o->files.n > 0 && o->mode != MODE_ADAPTER_INFO)
        return complain("'%s' belongs to no option; a prompt is given with -p", o->files.at[0]);
    return true;
}
