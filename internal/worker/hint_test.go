package worker

import "testing"

// A failure that comes from what the machine lacks says what to do; others say nothing.
func TestHint(t *testing.T) {
	h := &hooks{tokenless: true, runner: &Runner{Package: func(p string) (string, bool) {
		return map[string]string{"cmake": "cmake", "docker-x": "", "go": "golang-go"}[p], p == "cmake" || p == "docker-x" || p == "go"
	}}}
	const image = " is not in the machine's image"
	for _, c := range []struct{ line, want string }{
		{"/home/runner/work/_temp/x.sh: line 3: cmake: command not found", "cmake" + image +
			": `sudo apt-get install cmake` in a step brings it, or, for all jobs, " +
			"`hearth image build --packages cmake --name ci` and `hearth run -P ubuntu-latest=ci`."},
		{"/home/runner/x.sh: 1: frobnicate: not found", "frobnicate" + image + ": bring it with an action that sets it up, or install it in a step."},
		{"/usr/bin/env: ‘docker-x’: No such file or directory", "docker-x" + image +
			", and no package of Debian's has it: bring it with an action that sets it up, or install it in a step."},
		{"cp: error writing 'x': No space left on device", "The machine's disk is full: --disk MIB (disk_mib of a server) gives it more."},
		{"fatal: could not read Username for 'https://github.com': terminal prompts disabled", "token"},
		{"gh: To use GitHub CLI in a GitHub Actions workflow, set the GH_TOKEN environment variable.", "token"},
		{"the page was not found", ""},
		{"x: line 3: a b: command not found", ""},
		{"1 test failed", ""},
	} {
		want := c.want
		if want == "token" {
			want = "This run has no GITHUB_TOKEN. -s GITHUB_TOKEN takes one from the environment; checkout, git, gh and actions get it then."
		}
		if got := h.hint([]string{"before", c.line, "after"}); got != want {
			t.Errorf("%s: %q, want %q", c.line, got, want)
		}
	}
	h.runner.TakesImage = "a setting"
	if got, want := h.hint([]string{"x.sh: line 1: go: command not found"}), "go"+image+": `sudo apt-get install golang-go` in a step brings it, or, for all jobs, "+
		"`hearth image build --packages golang-go --name ci` and a setting. actions/setup-go brings the version it is told to, at once if it is in the tool cache: "+
		"`hearth image build --tools go@1.24`."; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	h.tokenless = false
	if got := h.hint([]string{"Bad credentials"}); got != "" {
		t.Error(got)
	}
}
