package worker

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// hintLines is how many of a step's last lines are looked at for a hint.
const hintLines = 200

var (
	// As bash, dash and env say it; the program's name is what it is called by.
	notFound = regexp.MustCompile(`(?:line \d+|\d+): ([A-Za-z0-9_.+-]{1,60}): (?:command )?not found$|^/usr/bin/env: ['‘]([A-Za-z0-9_.+-]{1,60})['’]: No such file`)
	diskFull = regexp.MustCompile(`(?i)no space left on device`)
	// What git, gh, octokit and actions say who got no token.
	tokenless = regexp.MustCompile(`could not read Username for 'https?://|terminal prompts disabled|gh auth login|set the GH_TOKEN environment variable|` +
		`Parameter token or opts\.auth is required|Input required and not supplied: (?:github[-_])?token|Requires authentication|Bad credentials`)
)

// hint says what to do about a failure that comes from what the machine has not got,
// "" where nothing is known. lines is the end of what the step printed.
func (h *hooks) hint(lines []string) string {
	lines = lines[max(0, len(lines)-hintLines):]
	for _, line := range slices.Backward(lines) {
		line = strings.TrimSpace(line)
		switch m := notFound.FindStringSubmatch(line); {
		case m != nil:
			return h.lacks(m[1] + m[2])
		case diskFull.MatchString(line):
			return "The machine's disk is full: --disk MIB (disk_mib of a server) gives it more."
		case h.tokenless && tokenless.MatchString(line):
			return "This run has no GITHUB_TOKEN. -s GITHUB_TOKEN takes one from the environment; checkout, git, gh and actions get it then."
		}
	}
	return ""
}

// lacks says how a program comes into the machine.
func (h *hooks) lacks(program string) string {
	pkg, known := "", false
	if h.runner.Package != nil {
		pkg, known = h.runner.Package(program)
	}
	switch {
	case known && pkg == "":
		return fmt.Sprintf("%s is not in the machine's image, and no package of Debian's has it: bring it with an action that sets it up, or install it in a step.", program)
	case !known:
		return fmt.Sprintf("%s is not in the machine's image: bring it with an action that sets it up, or install it in a step.", program)
	}
	setup := ""
	if program == "go" || program == "gofmt" {
		setup = " actions/setup-go brings the version it is told to, at once if it is in the tool cache: `hearth image build --tools go@1.24`."
	}
	return fmt.Sprintf("%s is not in the machine's image: `sudo apt-get install %s` in a step brings it, or, for all jobs, "+
		"`hearth image build --packages %[2]s --name ci` and %s.%s", program, pkg, cmp.Or(h.runner.TakesImage, "`hearth run -P ubuntu-latest=ci`"), setup)
}
