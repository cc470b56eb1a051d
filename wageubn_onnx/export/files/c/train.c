/* Train from raw files: train IMAGES LABELS [EPOCHS [LR [STATE]]]
 *
 * IMAGES: bytes, image after image, each [C][H][W]. LABELS: one byte each. LR: in units of the learning rate's grid. The state is
 * read from STATE where there is such a file, and written to it after every epoch.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wageubn.h"

static wageubn_state state;
static wageubn_batch batch;
static wageubn_result result;
static uint8_t saved[WAGEUBN_SAVED_BYTES];

static uint8_t *contents(const char *name, size_t *size)
{
    FILE *file = fopen(name, "rb");
    uint8_t *bytes = NULL;
    if (file && fseek(file, 0, SEEK_END) == 0) {
        *size = (size_t)ftell(file);
        rewind(file);
        bytes = malloc(*size + 1);
        if (bytes && fread(bytes, 1, *size, file) != *size)
            bytes = NULL;
    }
    if (!bytes) {
        fprintf(stderr, "%s: cannot be read\n", name);
        exit(1);
    }
    fclose(file);
    return bytes;
}

static void shuffle(uint32_t *order, uint32_t count)
{
    static uint32_t random = 1;
    for (uint32_t i = count - 1; i > 0; i--) {
        random = random * 1664525u + 1013904223u;
        uint32_t other = (uint32_t)((uint64_t)random * (i + 1) >> 32), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
}

static void load(const char *name)
{
    FILE *file = fopen(name, "rb");
    memcpy(saved, wageubn_initial, sizeof saved);
    if (file) {
        if (fread(saved, 1, sizeof saved, file) != sizeof saved)
            saved[0] = 0;
        fclose(file);
    }
    if (wageubn_load(&state, saved) != 0) {
        fprintf(stderr, "%s: no state of this network\n", name);
        exit(1);
    }
}

static void save(const char *name)
{
    FILE *file = fopen(name, "wb");
    wageubn_save(&state, saved);
    if (!file || fwrite(saved, 1, sizeof saved, file) != sizeof saved || fclose(file) != 0) {
        fprintf(stderr, "%s: cannot be written\n", name);
        exit(1);
    }
}

static uint32_t right(const uint8_t *images, const uint8_t *labels, uint32_t count)
{
    uint32_t correct = 0;
    for (uint32_t i = 0; i < count; i++) {
        WAGEUBN_LOGIT logits[WAGEUBN_CLASSES];
        int best = 0;
        wageubn_eval(&state, images + (size_t)i * WAGEUBN_IMAGE_BYTES, logits);
        for (int c = 1; c < WAGEUBN_CLASSES; c++)
            best = logits[c] > logits[best] ? c : best;
        correct += best == labels[i];
    }
    return correct;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: train IMAGES LABELS [EPOCHS [LR [STATE]]]\n");
        return 1;
    }
    size_t image_bytes, count;
    const uint8_t *images = contents(argv[1], &image_bytes), *labels = contents(argv[2], &count);
    if (count < WAGEUBN_BATCH || image_bytes != count * WAGEUBN_IMAGE_BYTES) {
        fprintf(stderr, "%s: not %d bytes for each of at least %d labels\n", argv[1], WAGEUBN_IMAGE_BYTES, WAGEUBN_BATCH);
        return 1;
    }
    int epochs = argc > 3 ? atoi(argv[3]) : 1;
    const char *name = argc > 5 ? argv[5] : "state.bin";
    uint32_t images_count = (uint32_t)count, *order = malloc(count * sizeof *order);
    if (!order)
        return 1;
    for (uint32_t i = 0; i < images_count; i++)
        order[i] = i;
    batch.lr = argc > 4 ? atoi(argv[4]) : 5;
    batch.gradient_range = 128;
    load(name);
    for (int epoch = 0; epoch < epochs; epoch++) {
        int64_t loss = 0;
        uint32_t steps = images_count / WAGEUBN_BATCH;
        shuffle(order, images_count);
        for (uint32_t step = 0; step < steps; step++) {
            for (uint32_t i = 0; i < WAGEUBN_BATCH; i++) {
                uint32_t chosen = order[step * WAGEUBN_BATCH + i];
                memcpy((uint8_t *)batch.images + (size_t)i * WAGEUBN_IMAGE_BYTES, images + (size_t)chosen * WAGEUBN_IMAGE_BYTES,
                       WAGEUBN_IMAGE_BYTES);
                batch.labels[i] = labels[chosen];
            }
            wageubn_step(&state, &batch, &result);
            loss += result.loss;
        }
        save(name);
        printf("epoch %d: loss %ld/1000, %u of %u right\n", epoch + 1, (long)(loss / steps * 1000 >> WAGEUBN_LOSS_BITS),
               (unsigned)right(images, labels, images_count), (unsigned)images_count);
    }
    return 0;
}
