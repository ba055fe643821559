package conduct

import (
	"testing"

	"github.com/hearth-ci/hearth/internal/plan"
)

// Any repository that the App was installed on could name the concurrency group of
// another one, and have its deployment cancelled.
func TestAttackGroupOfAnotherRepository(t *testing.T) {
	groups := NewGroups()
	hold := func(scope, name string, cancelled *bool) func() {
		t.Helper()
		release, err := groups.Hold(t.Context(), scope, plan.Group{Name: name, CancelInProgress: true}, func(string) { *cancelled = true })
		if err != nil {
			t.Fatal(err)
		}
		return release
	}
	var first, other bool
	release := hold("acme/app", "deploy", &first)
	hold("mallory/app", "deploy", &other)() // does not wait
	if first {
		t.Error("a group of acme/app was cancelled from mallory/app")
	}
	// Of one repository it is one group, whatever letters' case.
	cancelled := make(chan struct{})
	release2, err := groups.Hold(t.Context(), "acme/other", plan.Group{Name: "deploy"}, func(string) { close(cancelled) })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); hold("Acme/Other", "Deploy", &other)() }()
	<-cancelled
	release2()
	<-done
	release()
}
