package history

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
)

// leak runs commands that have a secret, fail, print it, in the encodings that
// programs use, come back in three machines and end; then it looks for the secret in
// everything that is kept or told: the database's files, the log, what was expected,
// the explanations, what the memory answers.
func leak(t *testing.T, secret string, commands []Command, prints string) {
	t.Helper()
	dir := t.TempDir()
	st, err := store.Open(t.Context(), filepath.Join(dir, "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var log bytes.Buffer
	l, err := learn.Open(t.Context(), st, learn.Options{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	k := &Keeper{Learn: l, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	var told bytes.Buffer
	tell := func(v any) {
		if err := json.NewEncoder(&told).Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	explained := 0
	for i := range 3 {
		m := k.Open(fmt.Sprint("m", i))
		for _, code := range []int{1, 1, 0} { // it fails twice, and other commands end it
			for _, c := range commands {
				e, why := does(t, m, c, code, prints)
				tell(e)
				tell(why)
				if why != nil {
					explained++
					if len(why.Lines) == 0 || why.Text == "" {
						t.Errorf("nothing is left of the explanation: %+v", why)
					}
				}
			}
			does(t, m, shell("make clean"), 0, "")
		}
	}
	if explained != 6*len(commands) {
		t.Fatalf("%d of %d failures were explained", explained, 6*len(commands))
	}
	ctx := t.Context()
	forecast, err1 := l.PredictCommand(ctx, "", "make clean")
	related, err2 := l.Related(ctx, "", "make clean", 100)
	next, err3 := l.Next(ctx, "", 100, "make clean")
	lessons, err4 := l.Lessons(ctx, "")
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			t.Error(err)
		}
	}
	if len(related)+len(next) == 0 {
		t.Error("nothing was learned")
	}
	tell([]any{forecast, related, next, lessons})
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	kept := map[string][]byte{"the log": log.Bytes(), "what is told": told.Bytes()}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		if kept[filepath.Base(f)], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Contains(kept["hearth.db"], []byte("make clean")) {
		t.Error("the database is not where it was looked for")
	}
	for where, b := range kept {
		for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret)), strings.ToUpper(secret)} {
			if i := bytes.Index(b, []byte(form)); i >= 0 {
				t.Errorf("%s has the secret: %q", where, b[max(i-60, 0):min(i+len(form)+60, len(b))])
			}
		}
	}
}

// all is what a program may print of a secret that it was given.
func all(secret string) string {
	return "using " + secret + "\nError: 403 for " + base64.StdEncoding.EncodeToString([]byte(secret)) + " and " + hex.EncodeToString([]byte(secret)) +
		"\nError: access denied, " + secret + " is not good\nfatal: " + strings.ToUpper(secret) + "\n"
}

// A word: nothing about it looks like a secret, but where it stands.
const word = "correcthorse"

// Code names the secret: an assignment, a flag, a here-document, a keyword of another language.
func TestAttackSecretInCode(t *testing.T) {
	leak(t, word, []Command{
		shell("export DB_PASSWORD=" + word + "\npsql -c 'select 1'"),
		shell("deploy --token " + word + " --to production"),
		shell("cat > .netrc <<E\nmachine x login ada password=" + word + "\nE\ncurl -n https://x"),
		{Language: "python3", Code: "import requests\npassword = '" + word + "'\nrequests.get('https://x', auth=('ada', password))\n"},
		{Language: "node", Code: `const client = require("pg"); connect({ user: "ada", "password": "` + word + `" })`},
		{Argv: []string{"sh", "-c", "PGPASSWORD='" + word + "' psql"}},
		{Argv: []string{"deploy", "--api-key", word}},
	}, all(word))
}

// A variable with a credential's name, or a URL, has the secret; code and output show it without either.
func TestAttackSecretInEnv(t *testing.T) {
	leak(t, word, []Command{
		{Language: "sh", Code: "echo " + word + " | deploy", Env: []string{"DEPLOY_TOKEN=" + word}},
		{Language: "python3", Code: "import os; print('" + word + "')", Env: []string{"PATH=/bin", "dbPassword=" + word}},
		{Argv: []string{"psql", word}, Env: []string{"DATABASE_URL=postgres://app:" + word + "@db/app"}},
	}, all(word))
}

// A word that is declared as a secret is one wherever it stands.
func TestAttackSecretDeclared(t *testing.T) {
	leak(t, word, []Command{
		{Language: "sh", Code: "login " + word, Env: []string{"X=" + word}, Secrets: []string{word}},
		{Argv: []string{"login", word}, Secrets: []string{word}},
	}, all(word))
}

// The secret is a URL's user or password, in the command and in the error.
func TestAttackSecretInURL(t *testing.T) {
	leak(t, word, []Command{
		shell("git clone https://ada:" + word + "@example.org/o/r.git"),
		{Argv: []string{"curl", "-sS", "ftp://ada:" + word + "@example.org/x"}},
		{Argv: []string{"git", "push", "https://" + word + "@example.org/o/r.git"}},
	}, "fatal: unable to access 'https://ada:"+word+"@example.org/o/r.git': 403\n"+all(word))
}

// The secret is in a header, or behind a flag for a login.
func TestAttackSecretInHeader(t *testing.T) {
	leak(t, word, []Command{
		shell(`curl -H "Authorization: Bearer ` + word + `" https://x`),
		{Argv: []string{"curl", "-H", "X-Api-Key: " + word, "https://x"}},
		{Argv: []string{"curl", "-u", "ada:" + word, "https://x"}},
		{Argv: []string{"docker", "login", "-u", "ada", "-p", word, "ghcr.io"}},
	}, all(word))
}

// What a program got by itself stands in its output alone.
func TestAttackSecretInOutput(t *testing.T) {
	const token = "ghp_0a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R"
	leak(t, token, []Command{shell("gh auth status"), {Argv: []string{"vault", "read", "x"}}},
		"Error: token "+token+" has expired\nremote: https://x-access-token:"+token+"@github.com/o/r not found\nfatal: "+token+"\n")
	leak(t, word, []Command{shell("vault read x")}, "{\"password\": \""+word+"\"}\nError: login failed, password="+word+" is not good\nAuthorization: Basic "+
		word+"\n")
	const key = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW"
	leak(t, key, []Command{shell("cat id_ed25519")}, "Error: not a key:\n-----BEGIN OPENSSH PRIVATE KEY-----\n"+key+"\nabcdef\n-----END OPENSSH PRIVATE KEY-----\n")
}

// A secret that the end of the kept output cuts in two is not half a secret.
func TestAttackSecretAtTheCut(t *testing.T) {
	const token = "ghp_0a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R"
	k := keeper(t)
	for shift := range 60 {
		m := k.Open(fmt.Sprint("m", shift))
		tail := "\nError: it failed\n"
		prints := "Error: " + token + " is not good; " + strings.Repeat("x", keepOutput-len(tail)-shift) + tail
		_, why := does(t, m, shell("vault read x"), 1, prints)
		if s := fmt.Sprint(why); strings.Contains(s, token[len(token)-8:]) {
			t.Fatalf("the end of the secret is told: %s", s)
		}
	}
}

// BenchmarkAttack is code and output that are made to take long.
func BenchmarkAttack(b *testing.B) {
	for name, unit := range map[string]string{"names": "password=", "words": "a ", "urls": "://x:", "quotes": "token\"'=", "flags": " -u a:",
		"chance": "A1b", "documents": "<<E "} {
		b.Run(name, func(b *testing.B) {
			text := strings.Repeat(unit, maxText/len(unit))
			for b.Loop() {
				c := shell(text)
				set, err := c.secrets()
				if err != nil {
					b.Fatal(err)
				}
				c.words(set)
				x := Execution{secrets: set}
				x.outputs[1].Write([]byte(text))
				x.lines()
			}
		})
	}
}
