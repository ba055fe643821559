/* tally: counts lines, words and bytes of its input. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define TALLY_VERSION "1.4.2"

struct count { unsigned long lines, words, bytes; };

static int tally(FILE *in, struct count *c)
{
	int ch, inside = 0;
	while ((ch = getc(in)) != EOF) {
		c->bytes++;
		if (ch == '\n')
			c->lines++;
		if (isspace(ch)) {
			inside = 0;
		} else if (!inside) {
			inside = 1;
			c->words++;
		}
	}
	return ferror(in);
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "--version") == 0) {
		puts("tally " TALLY_VERSION);
		return 0;
	}
	struct count total = {0, 0, 0};
	int failed = 0;
	for (int i = 1; i < argc; i++) {
		FILE *in = fopen(argv[i], "rb");
		if (!in) {
			perror(argv[i]);
			failed = 1;
			continue;
		}
		failed |= tally(in, &total);
		fclose(in);
	}
	if (argc == 1)
		failed |= tally(stdin, &total);
	printf("%lu %lu %lu\n", total.lines, total.words, total.bytes);
	return failed;
}
