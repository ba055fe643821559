package workflow

import (
	"strings"
	"testing"
)

func TestSteps(t *testing.T) {
	s := func(id string, inside ...*Step) *Step { return &Step{ID: id, Parallel: inside} }
	list := []*Step{s("a"), s("block", s("b"), s("inner", s("c"))), s("d")}
	var each, numbered []string
	for v := range EachStep(list) {
		each = append(each, v.ID)
	}
	for _, v := range NumberedSteps(list) {
		numbered = append(numbered, v.ID)
	}
	if got := strings.Join(each, " ") + ", " + strings.Join(numbered, " "); got != "a block b inner c d, a b c d" {
		t.Error(got)
	}
	for v := range EachStep(list) { // one that has enough is asked for no more
		if v.ID == "c" {
			break
		}
	}
}
