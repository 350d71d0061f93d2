/* SPDX-License-Identifier: MIT
 * convert/carry.h - modules of any family carried over into another file. */
#ifndef CONVERT_CARRY_H
#define CONVERT_CARRY_H
#include "convert/convert.h"

/* Tensors of one module, under the new prefix. */
kron_status carry_module(const struct adapter_file *f, int module, const char *prefix,
                         kron_naming naming, kron_type type, struct out_tensors *out);
/* Tensors that belong to no module: as they are. */
kron_status carry_rest(const struct adapter_file *f, struct out_tensors *out);

#endif
