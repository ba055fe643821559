package workflow

import (
	"strings"
	"testing"
)

func TestParseLock(t *testing.T) {
	a, b := strings.Repeat("a", 40), strings.Repeat("b", 40)
	locks, ds := ParseLock([]byte(`# made by gh actions-lock
version: 'v0.0.2'
workflows:
    '.github/workflows/ci.yml':
        - 'Actions/Checkout@v6'
    '.github/workflows/none.yml': []
dependencies:
    'Actions/Checkout@v6':
        ref: 'v6'
        commit: 'sha1-` + a + `'
        owner_id: 1
    'o/old@v1:sha1-` + b + `':
        commit: ` + b + `
`))
	ci := locks[".github/workflows/ci.yml"]
	if len(ds) != 0 || len(locks) != 2 || ci["actions/checkout@v6"] != a || ci["o/old@v1"] != b || locks[".github/workflows/other.yml"] != nil {
		t.Errorf("%v %v", locks, ds)
	}
	for src, want := range map[string]string{
		"version: v0.0.3\n":                    "no version that is known",
		"":                                     "",
		"- x\n":                                "no mapping",
		"version: v0.0.2\ndependencies: [x]\n": "expected a mapping",
		"version: v0.0.2\nworkflows: x\n":      "expected a mapping",
		"version: v0.0.2\ndependencies: {o/r@v1: {ref: v1}}\n":                 "has no commit",
		"version: v0.0.2\ndependencies: {o/r@v1: {commit: --upload-pack=x}}\n": "not the name of a commit",
		"version: [\n": "",
	} {
		if locks, ds := ParseLock([]byte(src)); locks != nil || len(ds) != 1 || !strings.Contains(ds[0].Message, want) || ds[0].File != LockFile || !Errors(ds) {
			t.Errorf("%q: %v %v", src, locks, ds)
		}
	}
}
