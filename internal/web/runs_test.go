package web

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

func TestRunQuery(t *testing.T) {
	v, err := url.ParseQuery("repository=o%2Fr&result=failure&branch=main&actor=a&event=push&q=+x+&after=1700000000000.7." + strings.Repeat("0", 26))
	if err != nil {
		t.Fatal(err)
	}
	q := runQuery(v)
	if q.After == nil || !q.After.Created.Equal(time.UnixMilli(1_700_000_000_000)) || q.After.Number != 7 || q.After.String() != v.Get("after") {
		t.Errorf("%+v", q.After)
	}
	if got := q.values().Encode(); got != "actor=a&branch=main&event=push&q=x&repository=o%2Fr&result=failure" {
		t.Error(got)
	}
	for _, bad := range []string{"", "1.2", "a.1." + strings.Repeat("0", 26), "1.1.x", "1.1.1.1"} {
		if placeOf(bad) != nil {
			t.Error(bad)
		}
	}
}

// What an address asks for is short, and stands in the page as text.
func TestAttackFilterAsMarkup(t *testing.T) {
	m, s := site(t)
	m.runs[0].Repository, m.runs[0].Actor, m.runs[0].Ref = `o/"><script>alert(1)</script>`, `javascript:alert(2)`, "refs/heads/\u202e<i>"
	evil := `"><script>alert(3)</script>` + strings.Repeat("x", 5000)
	resp, body := get(t, s.URL+"/?"+url.Values{"q": {evil}, "branch": {evil}, "actor": {evil}, "event": {evil}, "result": {evil},
		"repository": {evil}}.Encode())
	if resp.StatusCode != 200 || strings.Contains(body, "<script>") || strings.Contains(body, strings.Repeat("x", maxFilter+1)) || strings.Contains(body,
		"href=\"javascript:") {
		t.Errorf("%s:\n%s", resp.Status, body)
	}
}

func TestAgo(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for d, want := range map[time.Duration]string{-time.Hour: "just now", 10 * time.Second: "just now", 50 * time.Second: "1 minute ago",
		40 * time.Minute: "40 minutes ago",
		90 * time.Minute: "1 hour ago", 47 * time.Hour: "1 day ago", 10 * 24 * time.Hour: "22 Feb 2026"} {
		if got := ago(now.Add(-d), now); got != want {
			t.Errorf("%v: %q", d, got)
		}
	}
	if ago(time.Time{}, now) != "" || class(ci.Queued, "", false) != "waiting" {
		t.Error("of nothing")
	}
}
