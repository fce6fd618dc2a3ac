/* The open runners of a process, under numbers: what is asked of them without the interpreter. */
#ifndef IRESNET_RUNNERS_H
#define IRESNET_RUNNERS_H

#include "iresnet_infer.h"

/* What is known of a runner; made by runners_new, owned by the table from runners_add to runners_take. */
typedef struct runner_entry {
    uint64_t number;
    iresnet_info info; /* its texts are this entry's */
    int32_t labels_count;
    char **labels;
    struct runner_entry *next;
} runner_entry;

/* NULL where memory is short. The texts of info and labels are to be given with runners_copy. */
runner_entry *runners_new(uint64_t number, int32_t labels_count);
char *runners_copy(const char *text);
void runners_free(runner_entry *entry);

void runners_add(runner_entry *entry);

/* Out of the table: nobody finds it any more. NULL where it is not there. */
runner_entry *runners_take(const iresnet_runner *runner);

/* Copy of its information; 0 where it is not open. */
int runners_info(const iresnet_runner *runner, iresnet_info *info);

/* Name of a class. -1 where the runner is not open, the number of labels where index is not one of them, else -2. */
int32_t runners_label(const iresnet_runner *runner, int32_t index, const char **label);

/* Note what the known answers have said by now. */
void runners_set_answers(const iresnet_runner *runner, int32_t outcome, float sqnr_db, float floor_db);

#endif
