package bench

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	r := &Report{Machine: "m"}
	r.Add("fast", "µs", 5, []float64{3, 1, 2})
	r.Add("slow", "µs", 5, []float64{9})
	r.Add("none", "µs", 5, nil)
	r.Add("free", "MiB", 0, []float64{1})
	if r.OK() || !r.Figures[0].OK || r.Figures[1].OK || r.Figures[2].OK || !r.Figures[3].OK || r.Figures[0].P50 != 2 {
		t.Errorf("%+v", r.Figures)
	}
	var b bytes.Buffer
	if err := r.Table(&b); err != nil || strings.Count(b.String(), "MISSED") != 2 {
		t.Errorf("%v\n%s", err, &b)
	}
	j, err := json.Marshal(r)
	if err != nil || !strings.HasPrefix(string(j), `{"machine":"m","figures":[{"name":"fast","unit":"µs","n":3,"min":1,"p50":2,"p99":3,"max":3,"target":5,"ok":true}`) {
		t.Errorf("%s %v", j, err)
	}
}
