package mask

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

// TestGuess has a secret in each text, hunter2x or a token, that nobody named.
func TestGuess(t *testing.T) {
	pem := "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\nabcdefgh\n-----END OPENSSH PRIVATE KEY-----"
	for text, want := range map[string]string{
		`export DB_PASSWORD=hunter2x; psql`:                            "hunter2x",
		`PGPASSWORD='hunter2x' psql`:                                   "hunter2x",
		`password = "hunter 2x"`:                                       "hunter 2x",
		`{"password": "hunter2x", "user": "ada"}`:                      "hunter2x",
		`curl -d '{\"apiKey\": \"hunter2x\"}' x`:                       "hunter2x",
		`client.login(secret='hunter2x')`:                              "hunter2x",
		`apiToken: hunter2x`:                                           "hunter2x",
		`x => { clientSecret: 'hunter2x' }`:                            "hunter2x",
		`deploy --token hunter2x --force`:                              "hunter2x",
		`deploy --api-key=hunter2x`:                                    "hunter2x",
		`git clone https://ada:hunter2x@example.org/r.git`:             "hunter2x",
		`git clone https://hunter2xhunter2x@example.org/r.git`:         "hunter2xhunter2x",
		`postgres://app:hunter2x@db:5432/app`:                          "hunter2x",
		`curl -H "Authorization: Bearer hunter2x" x`:                   "hunter2x",
		`curl -H 'authorization: hunter2x' x`:                          "hunter2x",
		`curl -H 'X-Api-Key: hunter2x' x`:                              "hunter2x",
		`curl -H 'Cookie: sid=hunter2x' x`:                             "sid=hunter2x",
		`curl -s -u ada:hunter2x https://example.org`:                  "hunter2x",
		`curl -u ada:12345 https://example.org`:                        "12345",
		`mysql -uroot -phunter2x app`:                                  "hunter2x",
		`sshpass -p hunter2x ssh host`:                                 "hunter2x",
		`docker login -u ada -p hunter2x ghcr.io`:                      "hunter2x",
		`redis-cli -a hunter2x ping`:                                   "hunter2x",
		`echo ghp_0123456789abcdefABCDEF0123456789abcd`:                "ghp_0123456789abcdefABCDEF0123456789abcd",
		`aws AKIAIOSFODNN7EXAMPLE`:                                     "AKIAIOSFODNN7EXAMPLE",
		`key wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY x`:               "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
		`x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def y`:             "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def",
		`sk-proj-abcdefghijklmnop`:                                     "sk-proj-abcdefghijklmnop",
		"cat <<E\n" + pem + "\nE":                                      "b3BlbnNzaC1rZXktdjEAAAAA",
		`//registry.npmjs.org/:_authToken=hunter2x`:                    "hunter2x",
		`_auth=hunter2x`:                                               "hunter2x",
		`machine example.org login ada password:hunter2x`:              "hunter2x",
		`Server=db;ConnectionString=hunter2x;x`:                        "hunter2x",
		`echo 4f3a9c1b7e2d8f6a0b5c4d3e2f1a9b8c`:                        "4f3a9c1b7e2d8f6a0b5c4d3e2f1a9b8c",
		`os.environ["SLACK_TOKEN"] = "hunter2x"`:                       "hunter2x",
		`npm run lint && go test ./internal/mask -run TestGuess`:       "",
		`cd /home/runner/work/veryLongProjectName2/anotherDirectory3`:  "",
		`gcc-12-x86-64-linux-gnu-and-some-more-words`:                  "",
		`docker run -u 1000:1000 ghcr.io/o/r:v1.2.3`:                   "",
		`TOKEN=$GITHUB_TOKEN; PASSWORD="$(cat p)"; password=read()`:    "",
		`git clone ssh://git@github.com/o/r`:                           "",
		`author: Ada, max_tokens: 4096, cache-key: npm-lock, keys: 12`: "",
		`TestAttackFrameOfAnotherMachineIsRefused`:                     "",
	} {
		found := Guess(text)
		if want == "" {
			if len(found) > 0 {
				t.Errorf("%q: %q is taken for a secret", text, found)
			}
			continue
		}
		if !strings.Contains(strings.Join(found, "\n"), want) {
			t.Errorf("%q: found %q, want %q", text, found, want)
		}
		if r := Redact(text); strings.Contains(r, want) || !strings.Contains(r, Mark) {
			t.Errorf("%q became %q", text, r)
		}
	}
}

// What chance makes is known by its looks, whatever alphabet it is written in.
func TestGuessRandom(t *testing.T) {
	missed := 0
	for range 1000 {
		var b [24]byte
		rand.Read(b[:])
		for _, s := range []string{base64.StdEncoding.EncodeToString(b[:]), base64.RawURLEncoding.EncodeToString(b[:]), hex.EncodeToString(b[:])} {
			if !strings.Contains(Redact("it printed "+s+" and failed"), Mark) {
				missed++
			}
		}
	}
	if missed > 30 { // of 3,000
		t.Errorf("%d of 3000 random tokens were not taken for one", missed)
	}
}

func TestGuessEnv(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"GITHUB_TOKEN", "x", "x"}, {"DB_PASS", "some words", "some words"}, {"OPENAI_API_KEY", "plain", "plain"}, {"MY_KEY", "k", "k"},
		{"DATABASE_URL", "postgres://u:pw123@h/d", "pw123"}, {"NPM_CONFIG__AUTH", "abc", "abc"},
	} {
		if got := GuessEnv(c.name, c.value); len(got) == 0 || got[0] != c.want {
			t.Errorf("%s=%s: %q", c.name, c.value, got)
		}
	}
	for _, c := range [][2]string{{"PATH", "/usr/bin:/bin"}, {"PWD", "/home"}, {"OLDPWD", "/x"}, {"NODE_ENV", "test"}, {"GITHUB_TOKEN", ""}, {"KEYBOARD", "us"}} {
		if got := GuessEnv(c[0], c[1]); len(got) > 0 {
			t.Errorf("%s=%s: %q", c[0], c[1], got)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("export TOKEN=abc\nAuthorization: Bearer x -u a:b")
	f.Fuzz(func(t *testing.T, text string) {
		r := Redact(text)
		if strings.Count(r, "\n") != strings.Count(text, "\n") {
			t.Fatalf("%q became %q: lines are lost", text, r)
		}
	})
}

func BenchmarkRedact(b *testing.B) {
	text := strings.Repeat("=== RUN   TestFoo/bar_baz\n    foo_test.go:12: got 3, want 4\n--- FAIL: TestFoo (0.00s)\n", 500)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		Redact(text)
	}
}
