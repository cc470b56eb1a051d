/* Steps from files, for comparisons: run INPUT OUTPUT
 *
 * INPUT: a saved state, then the members of wageubn_batch of every step, in order, little-endian. OUTPUT: of every step, the state as
 * saved, then the members of wageubn_result.
 */
#include <stdio.h>

#include "wageubn.h"

#define COUNT(fields) (sizeof(fields) / sizeof(fields)[0])

static wageubn_state state;
static wageubn_batch batch;
static wageubn_result result;
static uint8_t saved[WAGEUBN_SAVED_BYTES];
static uint8_t bytes[sizeof batch > sizeof result ? sizeof batch : sizeof result];

static int read_batch(FILE *file)
{
    for (size_t i = 0; i < COUNT(wageubn_batch_fields); i++) {
        const wageubn_field *field = &wageubn_batch_fields[i];
        if (fread(bytes, field->bytes, field->count, file) != field->count)
            return 0;
        wageubn_unpack(field, (uint8_t *)&batch + field->offset, bytes);
    }
    return 1;
}

static int write_step(FILE *file)
{
    wageubn_save(&state, saved);
    if (fwrite(saved, 1, sizeof saved, file) != sizeof saved)
        return 0;
    for (size_t i = 0; i < COUNT(wageubn_result_fields); i++) {
        const wageubn_field *field = &wageubn_result_fields[i];
        wageubn_pack(field, (const uint8_t *)&result + field->offset, bytes);
        if (fwrite(bytes, field->bytes, field->count, file) != field->count)
            return 0;
    }
    return 1;
}

int main(int argc, char **argv)
{
    FILE *input = fopen(argc > 2 ? argv[1] : "input.bin", "rb");
    FILE *output = fopen(argc > 2 ? argv[2] : "output.bin", "wb");
    if (!input || !output || fread(saved, 1, sizeof saved, input) != sizeof saved)
        return 1;
    if (wageubn_load(&state, saved) != 0)
        return 2;
    while (read_batch(input)) {
        wageubn_step(&state, &batch, &result);
        if (!write_step(output))
            return 3;
    }
    return fclose(output) != 0;
}
