package bench

import "testing"

// The bench itself, at its smallest; what it measures here means nothing.
func TestServe(t *testing.T) {
	r, err := Serve(t.Context(), ServeOptions{Dir: t.TempDir(), Seconds: 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Figures) != 2 || r.Figures[0].P50 <= 0 || r.Figures[1].N != 500 || !r.Figures[0].AtLeast {
		t.Errorf("%+v", r.Figures)
	}
}
