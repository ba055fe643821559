package github

import (
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"
)

type answers []func() (*http.Response, error)

func (a *answers) RoundTrip(*http.Request) (*http.Response, error) {
	next := (*a)[0]
	*a = (*a)[1:]
	return next()
}

// The least that any installation has left counts, until it is renewed.
func TestBudget(t *testing.T) {
	answer := func(code, left int, reset time.Duration) func() (*http.Response, error) {
		return func() (*http.Response, error) {
			return &http.Response{StatusCode: code, Header: http.Header{"X-Ratelimit-Limit": {"5000"}, "X-Ratelimit-Remaining": {strconv.Itoa(left)},
				"X-Ratelimit-Reset": {strconv.FormatInt(time.Now().Add(reset).Unix(), 10)}}}, nil
		}
	}
	m := &meter{next: &answers{answer(200, 100, time.Hour), answer(200, 4000, time.Hour), answer(403, 0, -time.Minute), answer(200, 4999, time.Hour),
		func() (*http.Response, error) { return nil, errors.New("away") }, func() (*http.Response, error) { return &http.Response{StatusCode: 201}, nil }}}
	for i, want := range []int{100, 100, 0, 4999, 4999, 4999} {
		m.RoundTrip(nil)
		if b := m.read(); b.Remaining != want || b.Limit != 5000 {
			t.Errorf("after %d: %+v", i, b)
		}
	}
	if a := m.read().Answers; a[200] != 3 || a[403] != 1 || a[0] != 1 || a[201] != 1 || len(a) != 4 {
		t.Error(a)
	}
}
