/*
 * What the guest does in tests: it rewrites memory at a steady rate, checks it forever, and beats.
 *
 * Every page holds what follows from its index and from the sequence number of its last rewriting,
 * and nothing else. A sweep goes over all pages, and before it rewrites one it compares all of it
 * with what the sweep before must have left there. So a page that was lost, that is older than it
 * should be, or of which one part is older than the other, is found within one sweep.
 *
 * One word of each line of 64 bytes depends on the sequence number and the rest never changes, so
 * that deltas have something to do. Pages are text or noise, evenly spread.
 *
 * Settings come from the kernel's command line, as multifd.NAME=NUMBER:
 *   size_mib    memory that is rewritten (64)
 *   rate_mib    how much of it in a second (20); 0: it is only checked, as fast as if it were 20
 *   used_mib    memory that is filled once and checked forever (0)
 *   noise_pct   how many of a hundred pages are noise (50)
 *   beat_ms     from one beat to the next (100)
 *
 * It says, each on a line of its own: "ready" once, "beat N" from 1 up, "sweep N" when all memory
 * that is rewritten was found as it should be, and "BROKEN" and why when a page was not.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096, LINE_BYTES = 64, PAGE_LINES = PAGE_BYTES / LINE_BYTES, LINE_WORDS = 8 };
enum { TEXT_BYTES = 1 << 16, SLICE_PAGES = 256, COMPLAINTS_MAX = 10, CHECK_RATE_MIB = 20 };

static const uint64_t MIB = 1 << 20, SECOND_NS = 1000000000, MS_NS = 1000000;

/* Marks a page of ours for whoever looks at the guest's RAM from outside. */
static const uint64_t MAGIC = 0x6d756c7469666421;

typedef uint64_t Page[PAGE_BYTES / sizeof(uint64_t)];

struct area {
  const char *name;
  Page *pages;
  uint64_t page_count;
  /* So that no two areas have the same content. */
  uint64_t first_index;
  int is_rewritten;
  double bytes_per_ns;
  uint64_t sweep;
  uint64_t next_page;
  uint64_t started_ns;
  uint64_t done_bytes;
};

static char text[TEXT_BYTES];
static int complaints;
static uint64_t noise_pct;

static uint64_t now_ns(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (uint64_t)at.tv_sec * SECOND_NS + (uint64_t)at.tv_nsec;
}

/* In one write, so that lines stay whole. */
static void say(const char *format, ...) {
  char line[200];
  va_list values;
  va_start(values, format);
  int length = vsnprintf(line, sizeof line, format, values);
  va_end(values);
  for (int at = 0; at < length;) {
    ssize_t written = write(STDOUT_FILENO, line + at, (size_t)(length - at));
    if (written <= 0) return;
    at += (int)written;
  }
}

/* The finalizer of SplitMix64: neighbouring numbers give unrelated ones. */
static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

static void make_text(void) {
  static const char *const words[] = {"guest", "host", "page", "chunk", "round", "dirty", "fence",
                                      "channel", "worker", "memory", "sends", "waits", "and", "the"};
  const uint64_t word_count = sizeof words / sizeof *words;
  for (size_t at = 0, word = 0; at < TEXT_BYTES; word += 1) {
    const char *chosen = words[mix(word) % word_count];
    at += (size_t)snprintf(text + at, TEXT_BYTES - at, "%s ", chosen);
  }
}

/* What never changes in a page. */
static void make_body(Page page, uint64_t index) {
  const int is_noise = (index + 1) * noise_pct / 100 > index * noise_pct / 100;
  if (!is_noise) {
    memcpy(page, text + mix(index) % (TEXT_BYTES - PAGE_BYTES), PAGE_BYTES);
  } else {
    for (unsigned word = 0; word < PAGE_BYTES / sizeof *page; word += 1) {
      page[word] = mix(index * PAGE_BYTES + word);
    }
  }
  page[1] = index;
  page[2] = MAGIC;
}

static void stamp(Page page, uint64_t index, uint64_t sequence) {
  page[0] = sequence;
  for (unsigned line = 1; line < PAGE_LINES; line += 1) {
    page[line * LINE_WORDS] = mix(index * PAGE_LINES + line) + sequence;
  }
}

static void complain(const struct area *area, uint64_t at, const Page wanted) {
  const uint64_t *found = area->pages[at];
  unsigned different_lines = 0;
  for (unsigned word = 0; word < PAGE_BYTES / sizeof *wanted; word += LINE_WORDS) {
    different_lines += memcmp(found + word, wanted + word, LINE_BYTES) != 0;
  }
  if (complaints++ >= COMPLAINTS_MAX) return;
  say("BROKEN: page %lu of the memory that is %s: wanted sequence %lu, found %lu; %u of %u lines are wrong\n",
      at, area->name, wanted[0], found[0], different_lines, PAGE_LINES);
}

/* Checks one page, and rewrites it where that is its lot. */
static void visit(struct area *area) {
  static Page wanted;
  const uint64_t at = area->next_page, index = area->first_index + at;
  uint64_t *page = area->pages[at];
  const uint64_t sequence = area->is_rewritten ? area->sweep : 0;
  make_body(wanted, index);
  stamp(wanted, index, sequence);
  if (memcmp(page, wanted, PAGE_BYTES) != 0) {
    complain(area, at, wanted);
    memcpy(page, wanted, PAGE_BYTES);
  }
  if (area->is_rewritten) stamp(page, index, sequence + 1);
  area->next_page = at + 1;
  if (area->next_page < area->page_count) return;
  area->next_page = 0;
  area->sweep += 1;
  if (area->first_index == 0) say("sweep %lu\n", area->sweep);
}

/* Does what is due; what was missed while the guest stood still is not made up for in a burst. */
static void work(struct area *area, uint64_t at_ns) {
  if (area->page_count == 0) return;
  double due = (double)(at_ns - area->started_ns) * area->bytes_per_ns - (double)area->done_bytes;
  if (due > (double)(SECOND_NS / 4) * area->bytes_per_ns) {
    area->started_ns = at_ns;
    area->done_bytes = 0;
    return;
  }
  for (unsigned page = 0; page < SLICE_PAGES && due >= PAGE_BYTES; page += 1) {
    visit(area);
    area->done_bytes += PAGE_BYTES;
    due -= PAGE_BYTES;
  }
}

static struct area make_area(const char *name, uint64_t size_mib, uint64_t first_index) {
  struct area area = {.name = name, .page_count = size_mib * MIB / PAGE_BYTES, .first_index = first_index};
  if (area.page_count == 0) return area;
  area.pages = mmap(NULL, size_mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area.pages == MAP_FAILED) {
    say("BROKEN: %lu MiB of memory cannot be had\n", size_mib);
    exit(1);
  }
  for (uint64_t at = 0; at < area.page_count; at += 1) {
    make_body(area.pages[at], first_index + at);
    stamp(area.pages[at], first_index + at, 0);
  }
  return area;
}

/* Memory comes from both of two nodes in turn; where there is one, this is refused. */
static void use_all_nodes(void) {
  const int interleave = 3;
  const unsigned long nodes = 0x3;
  (void)syscall(SYS_set_mempolicy, interleave, &nodes, 8 * sizeof nodes);
}

static uint64_t setting(const char *line, const char *name, uint64_t otherwise) {
  char wanted[40];
  snprintf(wanted, sizeof wanted, "multifd.%s=", name);
  const char *found = strstr(line, wanted);
  return found == NULL ? otherwise : strtoul(found + strlen(wanted), NULL, 10);
}

static void rest(uint64_t until_ns) {
  const uint64_t slice_ns = 2 * MS_NS, at_ns = now_ns();
  if (until_ns <= at_ns) return;
  const uint64_t left_ns = until_ns - at_ns < slice_ns ? until_ns - at_ns : slice_ns;
  nanosleep(&(struct timespec){.tv_nsec = (long)left_ns}, NULL);
}

int main(void) {
  static char line[4096];
  FILE *file = fopen("/proc/cmdline", "r");
  if (file == NULL || fgets(line, sizeof line, file) == NULL) {
    say("BROKEN: the command line cannot be read\n");
    return 1;
  }
  const uint64_t rate_mib = setting(line, "rate_mib", 20), beat_ms = setting(line, "beat_ms", 100);
  noise_pct = setting(line, "noise_pct", 50);
  use_all_nodes();
  make_text();
  struct area rewritten = make_area("rewritten", setting(line, "size_mib", 64), 0);
  struct area used = make_area("only used", setting(line, "used_mib", 0), 1 << 24);
  rewritten.is_rewritten = rate_mib > 0;
  const uint64_t pace_mib = rate_mib > 0 ? rate_mib : CHECK_RATE_MIB;
  rewritten.bytes_per_ns = (double)(pace_mib * MIB) / (double)SECOND_NS;
  used.bytes_per_ns = (double)(CHECK_RATE_MIB * MIB) / (double)SECOND_NS;
  say("ready\n");
  uint64_t beat = 0, beat_ns = now_ns();
  rewritten.started_ns = used.started_ns = beat_ns;
  for (;;) {
    const uint64_t at_ns = now_ns();
    if (at_ns >= beat_ns) {
      say("beat %lu\n", ++beat);
      const int is_late = at_ns > beat_ns + beat_ms * MS_NS;
      beat_ns = (is_late ? at_ns : beat_ns) + beat_ms * MS_NS;
    }
    work(&rewritten, at_ns);
    work(&used, at_ns);
    rest(beat_ns);
  }
}
