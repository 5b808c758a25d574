package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// stdout takes tables and figures.
var stdout io.Writer = os.Stdout

// table collects values by row and column over the rounds of a benchmark.
type table struct {
	name, unit string
	rows, cols []string
	values     map[[2]string][]float64
}

func newTable(name, unit string) *table {
	return &table{name: name, unit: unit, values: map[[2]string][]float64{}}
}

func (t *table) add(row, col string, v float64) {
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	if !slices.Contains(t.cols, col) {
		t.cols = append(t.cols, col)
	}
	k := [2]string{row, col}
	t.values[k] = append(t.values[k], v)
}

func (t *table) median(row, col string) float64 { return median(t.values[[2]string{row, col}]) }

// spread is how far the rounds of a column are apart at most, the greatest value
// over the least: of a yardstick, it says how quiet the machine was.
func (t *table) spread(col string) (most float64) {
	for _, r := range t.rows {
		if v := t.values[[2]string{r, col}]; len(v) > 0 {
			most = max(most, slices.Max(v)/slices.Min(v))
		}
	}
	return most
}

// print prints a line for each row, with the median and the spread of each
// column.
func (t *table) print() {
	w := tabwriter.NewWriter(stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "%s, %s", t.name, t.unit)
	for _, c := range t.cols {
		fmt.Fprintf(w, "\t%s", c)
	}
	fmt.Fprintln(w)
	for _, r := range t.rows {
		fmt.Fprint(w, r)
		for _, c := range t.cols {
			v := t.values[[2]string{r, c}]
			if len(v) == 0 {
				fmt.Fprint(w, "\t-")
				continue
			}
			fmt.Fprintf(w, "\t%s (%s-%s)", number(median(v)), number(slices.Min(v)), number(slices.Max(v)))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	fmt.Fprintln(stdout)
}

// number has three or more digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// figure prints one result of a benchmark.
func figure(name string, v float64, unit string) {
	fmt.Fprintf(stdout, "bench %s %.3g %s\n", name, v, unit)
}

// ratio is the figure of two medians, if there are both.
func ratio(name string, a, b float64) {
	if a > 0 && b > 0 {
		figure(name, a/b, "x")
	}
}

// saveTo unpacks files into dir.
func saveTo(dir string) func(*tar.Reader) error {
	return func(r *tar.Reader) error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if h.Typeflag != tar.TypeReg {
				continue
			}
			f, err := os.Create(filepath.Join(dir, filepath.Base(h.Name)))
			if err != nil {
				return err
			}
			_, err = io.Copy(f, r)
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
	}
}
