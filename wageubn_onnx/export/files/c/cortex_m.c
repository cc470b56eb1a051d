/* Start of a program on the board MPS2 with a Cortex-M3 (QEMU: mps2-an385); files and the exit code go through semihosting. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern uint8_t data_source[], data_start[], data_end[], bss_start[], bss_end[], stack_top[];
extern void initialise_monitor_handles(void);
extern int main(int argc, char **argv);

void start(void)
{
    memcpy(data_start, data_source, (size_t)(data_end - data_start));
    memset(bss_start, 0, (size_t)(bss_end - bss_start));
    initialise_monitor_handles();
    exit(main(0, NULL));
}

static void fault(void)
{
    _Exit(9);
}

static const void *const vectors[16] __attribute__((section(".vectors"), used)) = {
    stack_top, (const void *)start, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, (const void *)fault,
};

void _init(void) {}
void _fini(void) {}
