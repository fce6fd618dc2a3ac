#include "runners.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static runner_entry *first;

/* A fork finds the table whole and its lock free. */
static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }
__attribute__((constructor)) static void guard_forks(void) { pthread_atfork(before_fork, after_fork, after_fork); }

static void free_text(const char *text) { free((char *)(uintptr_t)text); }

runner_entry *runners_new(uint64_t number, int32_t labels_count)
{
    runner_entry *entry = calloc(1, sizeof *entry);
    if (!entry)
        return NULL;
    entry->number = number;
    entry->labels_count = labels_count;
    entry->labels = calloc(labels_count > 0 ? (size_t)labels_count : 1, sizeof *entry->labels);
    if (!entry->labels) {
        free(entry);
        return NULL;
    }
    return entry;
}

char *runners_copy(const char *text)
{
    const size_t size = strlen(text) + 1;
    char *copy = malloc(size);
    return copy ? memcpy(copy, text, size) : NULL;
}

void runners_free(runner_entry *entry)
{
    if (!entry)
        return;
    for (int32_t index = 0; index < entry->labels_count; ++index)
        free(entry->labels[index]);
    free(entry->labels);
    free_text(entry->info.target);
    free_text(entry->info.device);
    free_text(entry->info.notes);
    free(entry);
}

/* The place of the pointer to it; *place is NULL where it is not open. With the lock held. */
static runner_entry **find(const iresnet_runner *runner)
{
    runner_entry **place = &first;
    while (*place && (*place)->number != (uint64_t)(uintptr_t)runner)
        place = &(*place)->next;
    return place;
}

void runners_add(runner_entry *entry)
{
    pthread_mutex_lock(&lock);
    entry->next = first;
    first = entry;
    pthread_mutex_unlock(&lock);
}

runner_entry *runners_take(const iresnet_runner *runner)
{
    pthread_mutex_lock(&lock);
    runner_entry **place = find(runner), *entry = *place;
    if (entry)
        *place = entry->next;
    pthread_mutex_unlock(&lock);
    return entry;
}

int runners_info(const iresnet_runner *runner, iresnet_info *info)
{
    pthread_mutex_lock(&lock);
    const runner_entry *entry = *find(runner);
    if (entry)
        *info = entry->info;
    pthread_mutex_unlock(&lock);
    return entry != NULL;
}

int32_t runners_label(const iresnet_runner *runner, int32_t index, const char **label)
{
    int32_t result = -1;
    pthread_mutex_lock(&lock);
    const runner_entry *entry = *find(runner);
    if (entry) {
        result = entry->labels_count;
        if (index >= 0 && index < entry->labels_count) {
            *label = entry->labels[index];
            result = -2;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

void runners_set_answers(const iresnet_runner *runner, int32_t outcome, float sqnr_db, float floor_db)
{
    pthread_mutex_lock(&lock);
    runner_entry *entry = *find(runner);
    if (entry) {
        entry->info.known_answers = outcome;
        entry->info.known_answers_db = sqnr_db;
        entry->info.known_answers_floor_db = floor_db;
    }
    pthread_mutex_unlock(&lock);
}
