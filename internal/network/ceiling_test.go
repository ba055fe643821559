package network

import "testing"

// A request for "allow:0.0.0.0/0" opened every private address to a machine.
func TestAttackPolicyWiderThanCeiling(t *testing.T) {
	for _, c := range []struct {
		ceiling string
		may     []string
		not     []string
	}{
		{"public", []string{"public", "none", "allow:example.com", "allow:*.example.com:443", "allow:8.8.8.8", "allow:8.8.0.0/16:53", "allow:"},
			[]string{"allow:0.0.0.0/0", "allow:0.0.0.0/1", "allow:10.0.0.1", "allow:example.com,192.168.1.0/24", "allow:8.0.0.0/5", "allow:127.0.0.1",
				"allow:169.254.169.254", "allow:172.0.0.0/8:443"}},
		{"none", []string{"none"}, []string{"public", "allow:example.com", "allow:8.8.8.8", "allow:"}},
		{"allow:example.com,*.example.org:443,10.1.0.0/16,192.0.2.1:80",
			[]string{"none", "allow:", "allow:example.com", "allow:Example.com:80", "allow:a.example.org:443", "allow:*.b.example.org:443",
				"allow:*.example.org:443", "allow:10.1.2.3", "allow:10.1.2.0/24:22", "allow:192.0.2.1:80"},
			[]string{"public", "allow:example.org:443", "allow:a.example.org", "allow:*.example.com", "allow:a.example.com", "allow:10.0.0.0/8", "allow:10.2.0.1",
				"allow:192.0.2.1", "allow:192.0.2.1:81", "allow:0.0.0.0/0", "allow:8.8.8.8", "allow:xexample.org:443"}},
	} {
		ceiling, err := ParsePolicy(c.ceiling)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range [][]string{c.may, c.not} {
			for _, s := range list {
				p, err := ParsePolicy(s)
				if err != nil {
					t.Fatal(err)
				}
				if err := p.Within(ceiling); (err == nil) != (i == 0) {
					t.Errorf("%s within %s: %v", s, c.ceiling, err)
				}
			}
		}
	}
	// A server that lets machines into one private network.
	if err := (Policy{Mode: AllowList, Allow: []string{"10.1.2.3"}}).Within(Policy{Allow: []string{"10.1.0.0/16"}}); err != nil {
		t.Error(err)
	}
	if err := (Policy{Allow: []string{"10.2.0.0/16"}}).Within(Policy{Allow: []string{"10.1.0.0/16"}}); err == nil {
		t.Error("a public policy with more private addresses than the ceiling has")
	}
}
