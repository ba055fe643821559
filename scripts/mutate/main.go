// Command mutate says how much of a package its tests would miss. It changes one
// place of the package's code at a time (a condition turned round, a boundary
// moved, a statement left out, a number changed), runs the package's tests on the
// changed code, and lists the changes that no test noticed, each with its lines:
//
//	go run ./scripts/mutate -n 40 ./internal/plan ./internal/queue
//
// The files are not touched: `go test -overlay` puts the changed one in the place
// of its own. Which places are tried is drawn with a seed, so that a run can be
// repeated; another seed is other places.
//
// Every test runs once by itself on the code as it is, for its time and for the
// lines that it runs. Only the tests that run the line of a change are run on it, the quick ones first; a change in a line that no test runs
// survives without being built. Tests that take longer than -slow are left out,
// and so are those that fail as they are: both are named.
//
// A change that does not compile does not count. One whose tests take several
// times the time they took before is killed, as a test that fails; the sum says
// how many those were, as a loaded host makes them too. What nobody could notice
// is not tried: what goes into a log or into an error's text, and whether it does;
// the sizes that make gets as a hint; numbers next to a unit of time; the cancel
// that a context ends with.
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	n := flag.Int("n", 40, "changes a package")
	seed := flag.Uint64("seed", 1, "of the choice of places")
	slow := flag.Duration("slow", 20*time.Second, "tests that take longer are left out")
	want := flag.Float64("want", 0, "percent that have to die")
	also := flag.String("also", "", "further packages whose tests count, separated by commas")
	skip := flag.String("skip", "", "tests and their parts that are left out, as go test -skip has them")
	only := flag.String("file", "", "only changes of files whose name contains this")
	verbose := flag.Bool("v", false, "name the test that noticed, too")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "mutate: name packages, like ./internal/plan")
		os.Exit(2)
	}
	dir, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		fatal(err)
	}
	defer os.RemoveAll(dir)
	// A change may be a loop that allocates.
	_ = syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: 8 << 30, Max: 8 << 30})
	killed, alive := 0, 0
	for _, pkg := range flag.Args() {
		tests := append([]string{pkg}, strings.FieldsFunc(*also, func(r rune) bool { return r == ',' })...)
		s, err := newSuite(dir, pkg, tests, *slow, *skip)
		if err != nil {
			fatal(err)
		}
		all, err := mutants(pkg)
		if err != nil {
			fatal(err)
		}
		all = slices.DeleteFunc(all, func(m mutant) bool { return !strings.Contains(m.at, *only) })
		r := rand.New(rand.NewPCG(*seed, *seed))
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if err := s.buildTogether(all[:min(len(all), *n+*n/5)]); err != nil {
			fatal(err)
		}
		k, tried, late := 0, 0, 0
		for _, m := range all {
			if tried == *n {
				break
			}
			by, err := s.try(m)
			if errors.Is(err, errBuild) {
				continue
			}
			if err != nil {
				fatal(err)
			}
			tried++
			switch {
			case by == "":
				why := ""
				if len(s.of(m)) == 0 {
					why = " (no test runs this line)"
				}
				fmt.Printf("SURVIVED %s: %s%s\n%s", m.at, m.what, why, m.diff)
				continue
			case by == timedOut:
				late++
			}
			k++
			if *verbose {
				fmt.Printf("killed %s: %s: %s\n", m.at, m.what, by)
			}
		}
		killed, alive = killed+k, alive+tried-k
		fmt.Printf("%s: %d of %d changes noticed, %.0f %% (%d by time; %d places, seed %d)\n",
			pkg, k, tried, 100*float64(k)/float64(max(tried, 1)), late, len(all), *seed)
	}
	share := 100 * float64(killed) / float64(max(killed+alive, 1))
	if flag.NArg() > 1 {
		fmt.Printf("all: %d of %d, %.0f %%\n", killed, killed+alive, share)
	}
	if share < *want {
		os.RemoveAll(dir)
		os.Exit(1)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "mutate:", err)
	os.Exit(3)
}
