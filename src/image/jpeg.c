/* SPDX-License-Identifier: MIT
 * JPEG by libjpeg-turbo (the libjpeg 6b interface). As in png.c, state that outlives a jump is kept
 * in the caller's struct. The library's own memory comes from malloc; it has no hook for that. */
#include "image/image.h"
#include <setjmp.h>
#include <string.h>
#include <jpeglib.h>
#include <jerror.h>

enum {
    MAX_SCANS = 100,        /* progressive files have about ten; each scan costs a whole pass */
    MAX_SEGMENT = 65533,    /* bytes in one APP or COM segment */
    QUALITY_DEFAULT = 95,
    QUALITY_FULL_COLOUR = 90, /* from here on colour keeps the resolution of brightness */
    EXIF_MARK_BYTES = 6,
};

static const char exif_mark[EXIF_MARK_BYTES + 1] = "Exif\0";

struct jpeg {
    struct jpeg_error_mgr errors;       /* first: found from cinfo->err */
    struct jpeg_progress_mgr progress;
    struct jpeg_decompress_struct in;
    struct jpeg_compress_struct out;
    jmp_buf jump;
    kron_status status;
    char message[JMSG_LENGTH_MAX];
    kron_image image;
    void *row;                          /* four inks, before they become RGB */
    struct jpeg_destination_mgr to;
    struct image_bytes *bytes;
    uint8_t block[16384];
    struct image_bytes exif;
};

static void fail(struct jpeg *j, kron_status status, const char *message)
{
    j->status = status;
    snprintf(j->message, sizeof j->message, "%s", message);
    longjmp(j->jump, 1);
}

static void on_error(j_common_ptr info)
{
    struct jpeg *j = (struct jpeg *)info->err;
    info->err->format_message(info, j->message);
    j->status = info->err->msg_code == JERR_OUT_OF_MEMORY ? KRON_ERR_MEMORY : KRON_ERR_FORMAT;
    longjmp(j->jump, 1);
}

/* libjpeg goes on after lost data and makes up the rest; we do not. Warnings about bytes too many
 * or unusual headers stay harmless. */
static void on_message(j_common_ptr info, int level)
{
    switch (level < 0 ? info->err->msg_code : 0) {
    case JWRN_JPEG_EOF:
        fail((struct jpeg *)info->err, KRON_ERR_FORMAT, "the file is cut off");
        break;
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_BOGUS_PROGRESSION:
    case JWRN_MUST_RESYNC:
        on_error(info);
        break;
    default:
        break;
    }
}

static void on_progress(j_common_ptr info)
{
    if (info->is_decompressor && ((j_decompress_ptr)info)->input_scan_number > MAX_SCANS)
        fail((struct jpeg *)info->err, KRON_ERR_FORMAT, "more scans than any real file has");
}

static void set_up(struct jpeg *j)
{
    memset(j, 0, sizeof *j);
    jpeg_std_error(&j->errors);
    j->errors.error_exit = on_error;
    j->errors.emit_message = on_message;
    j->progress.progress_monitor = on_progress;
    j->in.err = j->out.err = &j->errors;
}

static kron_status finish(struct jpeg *j)
{
    jpeg_destroy_decompress(&j->in);
    jpeg_destroy_compress(&j->out);
    mem_free(j->row);
    image_bytes_free(&j->exif);
    if (j->status == KRON_ERR_FORMAT)
        return err_set(KRON_ERR_FORMAT, "damaged JPEG: %s", j->message);
    if (j->status != KRON_OK && j->message[0] != '\0')
        return err_set(j->status, "JPEG: %s", j->message);
    return j->status;
}

bool image_is_jpeg(const uint8_t *data, size_t bytes)
{
    return bytes >= 3 && memcmp(data, "\xff\xd8\xff", 3) == 0;
}

/* --- pixels --- */

static void read_header(struct jpeg *j, const uint8_t *data, size_t bytes)
{
    jpeg_create_decompress(&j->in);
    j->in.progress = &j->progress;
    jpeg_save_markers(&j->in, JPEG_COM, 0xFFFF);
    jpeg_save_markers(&j->in, JPEG_APP0 + 1, 0xFFFF);
    jpeg_mem_src(&j->in, data, (unsigned long)bytes);
    jpeg_read_header(&j->in, TRUE);
}

/* A block of 8 x 8 takes at least a bit when Huffman codes are used, so a header cannot promise
 * more than 512 pixels a byte. */
static void check_promise(struct jpeg *j, size_t bytes)
{
    size_t width = j->in.image_width, height = j->in.image_height;
    if (width > IMAGE_MAX_SIDE || height > IMAGE_MAX_SIDE)
        fail(j, KRON_ERR_FORMAT, "more than 16384 pixels on a side");
    if (!j->in.arith_code && width * height / 512 > bytes)
        fail(j, KRON_ERR_FORMAT, "the file is too short for its size in pixels");
}

static void make_room(struct jpeg *j)
{
    bool grey = j->in.jpeg_color_space == JCS_GRAYSCALE;
    bool inks = j->in.jpeg_color_space == JCS_CMYK || j->in.jpeg_color_space == JCS_YCCK;
    j->in.out_color_space = grey ? JCS_GRAYSCALE : inks ? JCS_CMYK : JCS_RGB;
    j->status = image_alloc(&j->image, (int)j->in.image_width, (int)j->in.image_height,
                            grey ? 1 : 3);
    if (j->status == KRON_OK && inks)
        j->status = mem_alloc_n(&j->row, j->in.image_width, 4, "a row of a JPEG file");
    if (j->status != KRON_OK)
        longjmp(j->jump, 1);
}

/* Adobe stores inks upside down, 255 for none. */
static void inks_to_rgb(uint8_t *to, const uint8_t *from, size_t n, bool inverted)
{
    unsigned flip = inverted ? 0 : 255;
    for (size_t i = 0; i < n; i++, from += 4, to += 3)
        for (int c = 0; c < 3; c++)
            to[c] = (uint8_t)(((from[c] ^ flip) * (from[3] ^ flip) + 127u) / 255u);
}

static void read_rows(struct jpeg *j)
{
    size_t stride = (size_t)j->image.width * (size_t)j->image.channels;
    jpeg_start_decompress(&j->in);
    while (j->in.output_scanline < j->in.output_height) {
        uint8_t *to = j->image.pixels + j->in.output_scanline * stride;
        JSAMPROW row = j->row != NULL ? j->row : to;
        jpeg_read_scanlines(&j->in, &row, 1);
        if (j->row != NULL)
            inks_to_rgb(to, j->row, (size_t)j->image.width, j->in.saw_Adobe_marker);
    }
    jpeg_finish_decompress(&j->in);
}

static void read_picture(struct jpeg *j, const uint8_t *data, size_t bytes)
{
    if (setjmp(j->jump) != 0)
        return;
    read_header(j, data, bytes);
    check_promise(j, bytes);
    make_room(j);
    read_rows(j);
}

kron_status image_jpeg_decode(kron_image *out, const uint8_t *data, size_t bytes)
{
    struct jpeg j;
    set_up(&j);
    read_picture(&j, data, bytes);
    kron_status status = finish(&j);
    if (status != KRON_OK)
        image_free(&j.image);
    *out = j.image;
    return status;
}

/* --- text --- */

static void read_markers(struct jpeg *j, const uint8_t *data, size_t bytes)
{
    if (setjmp(j->jump) != 0)
        return;
    read_header(j, data, bytes);
}

static kron_status copy_marker(struct image_texts *out, jpeg_saved_marker_ptr marker)
{
    struct str text = {0};
    const char *key = NULL;
    if (marker->marker == JPEG_COM) {
        const JOCTET *end = memchr(marker->data, 0, marker->data_length);
        size_t len = end != NULL ? (size_t)(end - marker->data) : marker->data_length;
        image_utf8_repair(&text, (const char *)marker->data, len);
        key = "Comment";
    } else if (marker->data_length > EXIF_MARK_BYTES &&
               memcmp(marker->data, exif_mark, EXIF_MARK_BYTES) == 0 &&
               image_exif_read(&text, marker->data + EXIF_MARK_BYTES,
                               marker->data_length - EXIF_MARK_BYTES)) {
        key = "UserComment";
    }
    kron_status status = text.status;
    if (status == KRON_OK && key != NULL)
        status = image_texts_add(out, key, str_get(&text));
    str_free(&text);
    return status;
}

kron_status image_jpeg_texts(struct image_texts *out, const uint8_t *data, size_t bytes)
{
    struct jpeg j;
    *out = (struct image_texts){0};
    set_up(&j);
    read_markers(&j, data, bytes);
    kron_status status = j.status;
    jpeg_saved_marker_ptr marker = status == KRON_OK ? j.in.marker_list : NULL;
    for (; marker != NULL && status == KRON_OK; marker = marker->next)
        status = copy_marker(out, marker);
    if (status != KRON_OK)
        image_texts_free(out);
    kron_status end = finish(&j);
    return end != KRON_OK ? end : status;
}

/* --- writing --- */

static void out_start(j_compress_ptr info)
{
    struct jpeg *j = (struct jpeg *)info->err;
    j->to.next_output_byte = j->block;
    j->to.free_in_buffer = sizeof j->block;
}

static void out_take(struct jpeg *j, size_t bytes)
{
    j->status = image_bytes_add(j->bytes, j->block, bytes);
    if (j->status != KRON_OK)
        longjmp(j->jump, 1);
}

static boolean out_flush(j_compress_ptr info)
{
    struct jpeg *j = (struct jpeg *)info->err;
    out_take(j, sizeof j->block);
    out_start(info);
    return TRUE;
}

static void out_end(j_compress_ptr info)
{
    struct jpeg *j = (struct jpeg *)info->err;
    out_take(j, sizeof j->block - j->to.free_in_buffer);
}

static void write_exif(struct jpeg *j)
{
    if (j->exif.len > MAX_SEGMENT)
        fail(j, KRON_ERR_ARGUMENT,
             "the parameters text is longer than the 32,000 characters that JPEG can keep; "
             "write a PNG, or leave it out");
    jpeg_write_marker(&j->out, JPEG_APP0 + 1, j->exif.data, (unsigned)j->exif.len);
}

static void write_picture(struct jpeg *j, int quality)
{
    if (setjmp(j->jump) != 0)
        return;
    jpeg_create_compress(&j->out);
    j->to.init_destination = out_start;
    j->to.empty_output_buffer = out_flush;
    j->to.term_destination = out_end;
    j->out.dest = &j->to;
    j->out.image_width = (JDIMENSION)j->image.width;
    j->out.image_height = (JDIMENSION)j->image.height;
    j->out.input_components = j->image.channels;
    j->out.in_color_space = j->image.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(&j->out);
    jpeg_set_quality(&j->out, quality, TRUE);
    j->out.optimize_coding = TRUE;
    if (quality >= QUALITY_FULL_COLOUR)
        j->out.comp_info[0].h_samp_factor = j->out.comp_info[0].v_samp_factor = 1;
    jpeg_start_compress(&j->out, TRUE);
    if (j->exif.len > 0)
        write_exif(j);
    size_t stride = (size_t)j->image.width * (size_t)j->image.channels;
    while (j->out.next_scanline < j->out.image_height) {
        JSAMPROW row = j->image.pixels + j->out.next_scanline * stride;
        jpeg_write_scanlines(&j->out, &row, 1);
    }
    jpeg_finish_compress(&j->out);
}

kron_status image_jpeg_encode(struct image_bytes *out, const kron_image *image,
                              const char *parameters, int quality)
{
    struct jpeg j;
    set_up(&j);
    j.bytes = out;
    j.image = *image;
    if (parameters != NULL) {
        j.status = image_bytes_add(&j.exif, exif_mark, EXIF_MARK_BYTES);
        if (j.status == KRON_OK)
            j.status = image_exif_write(&j.exif, parameters);
    }
    if (j.status == KRON_OK)
        write_picture(&j, quality > 0 ? quality : QUALITY_DEFAULT);
    return finish(&j);
}
