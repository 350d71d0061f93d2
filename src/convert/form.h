/* SPDX-License-Identifier: MIT
 * convert/form.h - the change of one layer, brought to the form that is to be written. */
#ifndef CONVERT_FORM_H
#define CONVERT_FORM_H
#include "convert/convert.h"

enum form { FORM_NONE, FORM_LORA, FORM_LOHA, FORM_LOKR, FORM_FULL, FORM_COUNT };
const char *form_text(enum form f);

/* scale times the product of the factors, in f32. Absent ones are NULL. */
struct made {
    enum form form;
    double scale;
    int64_t rank;           /* LORA, LOHA; LOKR: of w2, 0 where it is whole */
    int64_t up, uq, vp, m;  /* LOKR: w1[up, uq], w2[vp, m] */
    float *a, *b, *c, *d;   /* LORA: a[out, r], b[r, k]; LOHA: also c, d; LOKR: w2 = a b */
    float *w1, *w2;
    float *full;            /* [out, k] */
    float *bias;            /* [out]: the change of the bias beside any form; NULL: none */
};
void made_free(struct made *m);

/* What is asked for: see kron_adapter_convert_params. */
struct form_want {
    kron_form form;
    int64_t rank; /* 0: no limit */
    double energy;
    int64_t factor;
};
/* The sum of a layer's deltas. FORM_NONE where none that acts changes the weight.
 * KRON_ERR_ARGUMENT if a rank is needed and not given; KRON_ERR_UNSUPPORTED for deltas that depend
 * on the weight. */
kron_status form_make(const struct layer *l, struct delta_list list, const float *strengths,
                      const struct form_want *want, struct made *out);

#endif
