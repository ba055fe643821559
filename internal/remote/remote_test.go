package remote_test

import (
	"strings"
	"testing"
	"time"
)

const everything = `
  build:
    runs-on: ubuntu-latest
    permissions: {contents: read, id-token: write}
    outputs: {answer: "${{ steps.a.outputs.answer }}"}
    steps:
      - uses: actions/checkout@v4
      - uses: acme/greet@v1
      - id: a
        run: |
          cat main.go
          echo "the key is $KEY"
          echo "answer=42" >> $GITHUB_OUTPUT
          echo "::warning file=main.go,line=1::package name"
          echo "sum" >> $GITHUB_STEP_SUMMARY
        env: {KEY: "${{ secrets.DEPLOY_KEY }}"}
  call:
    needs: build
    uses: ./.github/workflows/called.yml
    with: {who: "${{ needs.build.outputs.answer }}"}
    secrets: {K: "${{ secrets.DEPLOY_KEY }}"}
  test:
    needs: build
    runs-on: ubuntu-latest
    strategy: {matrix: {v: [1, 2]}, fail-fast: false}
    steps:
      - run: test "${{ needs.build.outputs.answer }}" = 42 && test ${{ matrix.v }} = 1
`

// A push becomes checks, and all jobs run on a worker that has only a token: with the
// repository's tree, an action, a secret that no log has, and outputs.
func TestPush(t *testing.T) {
	s := newSite(t, "")
	w := s.worker("w1", nil)
	s.push(everything)
	got := s.checks(4, time.Minute)
	for name, want := range map[string]string{"CI / build": "success", "CI / call / in (1)": "success", "CI / test (1)": "success", "CI / test (2)": "failure"} {
		if got[name].Conclusion != want {
			t.Errorf("%s: %s: %s", name, got[name].Conclusion, got[name].Output.Title)
		}
	}
	if len(got["CI / build"].Annotations) != 1 {
		t.Errorf("annotations: %+v", got["CI / build"].Annotations)
	}
	lines, job := s.lines("build", "")
	log := strings.Join(lines, "\n")
	for _, want := range []string{"package main", "well met, from an action", "the key is ***"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in\n%s", want, log)
		}
	}
	if strings.Contains(log, "hunter2") || job.Outputs["answer"] != "42" || job.Attempt != 1 {
		t.Errorf("%+v\n%s", job, log)
	}
	if lines, _ := s.lines("call / in (1)", "for "); strings.Join(lines, "") != "42 1 *** []" { // the called one has what it is handed
		t.Errorf("the called workflow: %q", lines)
	}
	if strings.Contains(w.text(), "hunter2") || strings.Contains(s.server.text(), "hunter2") {
		t.Error("somebody tells the secret")
	}
}
