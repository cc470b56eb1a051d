/* States in files: magic, network, then the elements of every tensor in little-endian bytes, whatever the machine. */
#include <string.h>

#include "wageubn.h"

static const char magic[] = "WAGEUBN1" WAGEUBN_NETWORK;

enum { HEAD = sizeof magic - 1 };

static uint64_t element(const uint8_t *bytes, uint8_t count)
{
    uint64_t value = 0;
    for (uint8_t i = 0; i < count; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

void wageubn_pack(const wageubn_field *field, const void *from, uint8_t *bytes)
{
    for (size_t i = 0; i < field->count; i++) {
        uint8_t one;
        uint16_t two;
        uint32_t four;
        uint64_t value;
        const uint8_t *place = (const uint8_t *)from + i * field->bytes;
        switch (field->bytes) {
        case 1: memcpy(&one, place, 1), value = one; break;
        case 2: memcpy(&two, place, 2), value = two; break;
        case 4: memcpy(&four, place, 4), value = four; break;
        default: memcpy(&value, place, 8);
        }
        for (uint8_t b = 0; b < field->bytes; b++)
            *bytes++ = (uint8_t)(value >> (8 * b));
    }
}

void wageubn_unpack(const wageubn_field *field, void *to, const uint8_t *bytes)
{
    for (size_t i = 0; i < field->count; i++) {
        uint64_t value = element(bytes + i * field->bytes, field->bytes);
        uint8_t one = (uint8_t)value;
        uint16_t two = (uint16_t)value;
        uint32_t four = (uint32_t)value;
        uint8_t *place = (uint8_t *)to + i * field->bytes;
        switch (field->bytes) {
        case 1: memcpy(place, &one, 1); break;
        case 2: memcpy(place, &two, 2); break;
        case 4: memcpy(place, &four, 4); break;
        default: memcpy(place, &value, 8);
        }
    }
}

static int is_inside(const wageubn_field *field, const uint8_t *bytes)
{
    for (size_t i = 0; i < field->count; i++) {
        uint64_t raw = element(bytes + i * field->bytes, field->bytes);
        uint64_t sign = field->is_signed ? (uint64_t)1 << (8 * field->bytes - 1) : 0;
        int64_t value = (int64_t)((raw ^ sign) - sign);
        if (value < field->least || value > field->greatest)
            return 0;
    }
    return 1;
}

void wageubn_save(const wageubn_state *state, uint8_t *saved)
{
    memcpy(saved, magic, HEAD);
    saved += HEAD;
    for (size_t i = 0; i < WAGEUBN_STATES; i++) {
        const wageubn_field *field = &wageubn_state_fields[i];
        wageubn_pack(field, (const uint8_t *)state + field->offset, saved);
        saved += field->count * field->bytes;
    }
}

int wageubn_load(wageubn_state *state, const uint8_t *saved)
{
    if (memcmp(saved, magic, HEAD) != 0)
        return 1;
    saved += HEAD;
    for (size_t i = 0; i < WAGEUBN_STATES; i++) {
        const wageubn_field *field = &wageubn_state_fields[i];
        if (!is_inside(field, saved))
            return 2;
        wageubn_unpack(field, (uint8_t *)state + field->offset, saved);
        saved += field->count * field->bytes;
    }
    return 0;
}
