package workflow

import (
	"strings"
	"testing"
)

func TestCheckTrigger(t *testing.T) {
	var inputs strings.Builder
	for i := range 26 {
		inputs.WriteString("\n      i" + string(rune('a'+i)) + ": {}")
	}
	for _, c := range []struct{ on, want string }{
		{"\n  push:\n    branches: ['main', 'v[12']", "w.yml:3:24: invalid pattern 'v[12': the bracket is not closed at character 2"},
		{"\n  push:\n    branches: refs/heads/main", "w.yml:3:15: The pattern 'refs/heads/main' of branches matches nothing"},
		{"\n  push:\n    branches: ['!main']", "w.yml:3:16: All patterns of branches begin with !, so nothing matches"},
		{"\n  push:\n    paths: ['./src/**']", "w.yml:3:13: The pattern './src/**' of paths matches nothing"},
		{"\n  push:\n    paths-ignore: ['docs/']", "w.yml:3:20: The pattern 'docs/' of paths-ignore matches nothing"},
		{"\n  schedule:\n    - cron: '0 0 30 2 *'", "w.yml:3:7: The schedule '0 0 30 2 *' names a day that no month has, and never comes"},
		{"\n  schedule:\n    - cron: '*/2 * * * *'", "w.yml:3:7: The schedule '*/2 * * * *' is due more often than every 5 minutes"},
		{"\n  schedule:\n    - cron: '0 0 * * *'\n      timezone: Mars/Olympus", "w.yml:3:7: There is no time zone 'Mars/Olympus'"},
		{"\n  workflow_dispatch:\n    inputs:" + inputs.String(), "w.yml:29:7: you may only define up to 25 `inputs` for a `workflow_dispatch` event"},
		{"\n  push:\n    branches: [main, 'r/**', '!r/x']\n    paths: ['**.go', '!docs/**']\n  schedule:\n    - cron: '0 0 29 2 *'\n      timezone: Europe/Berlin\n    - cron: '0 0 31 2 MON'", ""},
	} {
		_, ds := Parse("w.yml", []byte("on:"+c.on+"\njobs:\n  j:\n    runs-on: x\n    steps:\n      - run: x\n"), Options{})
		var got []string
		for _, d := range ds {
			got = append(got, d.String())
		}
		if strings.Join(got, "\n") != c.want {
			t.Errorf("on:%s\n got %q\nwant %q", c.on, got, c.want)
		}
	}
}
