;; The two loops in which the page of `pvae explore` spends its time, on four float32 values an instruction: kernel.wasm holds
;; the bytes. network.js has the same loops, for a browser that does not take these and for shapes that they leave out.
(module
  (memory (export "memory") 1)

  ;; out (M, N) += a (M, K) b (K, N), for N a multiple of 8. A block of four rows and eight columns of `out` stays in
  ;; registers over all k. Where fewer than four rows are left, the last one is computed more than once, to the same values.
  (func (export "product") (param $out i32) (param $a i32) (param $b i32) (param $M i32) (param $K i32) (param $N i32)
    (local $m i32) (local $m1 i32) (local $m2 i32) (local $m3 i32) (local $n i32) (local $stop i32) (local $from i32)
    (local $o0 i32) (local $o1 i32) (local $o2 i32) (local $o3 i32) (local $a0 i32) (local $a1 i32) (local $a2 i32) (local $a3 i32)
    (local $x v128) (local $y v128) (local $s v128) (local $p0 v128) (local $p1 v128) (local $p2 v128) (local $p3 v128)
    (local $q0 v128) (local $q1 v128) (local $q2 v128) (local $q3 v128)
    (local.set $K (i32.shl (local.get $K) (i32.const 2))) ;; bytes of a row of a, and of one of b and out
    (local.set $N (i32.shl (local.get $N) (i32.const 2)))
    (local.set $M (i32.sub (local.get $M) (i32.const 1))) ;; the last row
    (loop $rows
      (local.set $m1 (select (i32.add (local.get $m) (i32.const 1)) (local.get $M) (i32.lt_u (i32.add (local.get $m) (i32.const 1)) (local.get $M))))
      (local.set $m2 (select (i32.add (local.get $m) (i32.const 2)) (local.get $M) (i32.lt_u (i32.add (local.get $m) (i32.const 2)) (local.get $M))))
      (local.set $m3 (select (i32.add (local.get $m) (i32.const 3)) (local.get $M) (i32.lt_u (i32.add (local.get $m) (i32.const 3)) (local.get $M))))
      (local.set $n (i32.const 0))
      (loop $columns
        (local.set $o0 (i32.add (i32.add (local.get $out) (local.get $n)) (i32.mul (local.get $m) (local.get $N))))
        (local.set $o1 (i32.add (i32.add (local.get $out) (local.get $n)) (i32.mul (local.get $m1) (local.get $N))))
        (local.set $o2 (i32.add (i32.add (local.get $out) (local.get $n)) (i32.mul (local.get $m2) (local.get $N))))
        (local.set $o3 (i32.add (i32.add (local.get $out) (local.get $n)) (i32.mul (local.get $m3) (local.get $N))))
        (local.set $a0 (i32.add (local.get $a) (i32.mul (local.get $m) (local.get $K))))
        (local.set $a1 (i32.add (local.get $a) (i32.mul (local.get $m1) (local.get $K))))
        (local.set $a2 (i32.add (local.get $a) (i32.mul (local.get $m2) (local.get $K))))
        (local.set $a3 (i32.add (local.get $a) (i32.mul (local.get $m3) (local.get $K))))
        (local.set $stop (i32.add (local.get $a0) (local.get $K)))
        (local.set $from (i32.add (local.get $b) (local.get $n)))
        (local.set $p0 (v128.load (local.get $o0))) (local.set $q0 (v128.load offset=16 (local.get $o0)))
        (local.set $p1 (v128.load (local.get $o1))) (local.set $q1 (v128.load offset=16 (local.get $o1)))
        (local.set $p2 (v128.load (local.get $o2))) (local.set $q2 (v128.load offset=16 (local.get $o2)))
        (local.set $p3 (v128.load (local.get $o3))) (local.set $q3 (v128.load offset=16 (local.get $o3)))
        (loop $k
          (local.set $x (v128.load (local.get $from)))
          (local.set $y (v128.load offset=16 (local.get $from)))
          (local.set $s (v128.load32_splat (local.get $a0)))
          (local.set $p0 (f32x4.add (local.get $p0) (f32x4.mul (local.get $s) (local.get $x))))
          (local.set $q0 (f32x4.add (local.get $q0) (f32x4.mul (local.get $s) (local.get $y))))
          (local.set $s (v128.load32_splat (local.get $a1)))
          (local.set $p1 (f32x4.add (local.get $p1) (f32x4.mul (local.get $s) (local.get $x))))
          (local.set $q1 (f32x4.add (local.get $q1) (f32x4.mul (local.get $s) (local.get $y))))
          (local.set $s (v128.load32_splat (local.get $a2)))
          (local.set $p2 (f32x4.add (local.get $p2) (f32x4.mul (local.get $s) (local.get $x))))
          (local.set $q2 (f32x4.add (local.get $q2) (f32x4.mul (local.get $s) (local.get $y))))
          (local.set $s (v128.load32_splat (local.get $a3)))
          (local.set $p3 (f32x4.add (local.get $p3) (f32x4.mul (local.get $s) (local.get $x))))
          (local.set $q3 (f32x4.add (local.get $q3) (f32x4.mul (local.get $s) (local.get $y))))
          (local.set $from (i32.add (local.get $from) (local.get $N)))
          (local.set $a1 (i32.add (local.get $a1) (i32.const 4)))
          (local.set $a2 (i32.add (local.get $a2) (i32.const 4)))
          (local.set $a3 (i32.add (local.get $a3) (i32.const 4)))
          (br_if $k (i32.lt_u (local.tee $a0 (i32.add (local.get $a0) (i32.const 4))) (local.get $stop))))
        (v128.store (local.get $o0) (local.get $p0)) (v128.store offset=16 (local.get $o0) (local.get $q0))
        (v128.store (local.get $o1) (local.get $p1)) (v128.store offset=16 (local.get $o1) (local.get $q1))
        (v128.store (local.get $o2) (local.get $p2)) (v128.store offset=16 (local.get $o2) (local.get $q2))
        (v128.store (local.get $o3) (local.get $p3)) (v128.store offset=16 (local.get $o3) (local.get $q3))
        (br_if $columns (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 32))) (local.get $N))))
      (br_if $rows (i32.le_u (local.tee $m (i32.add (local.get $m) (i32.const 4))) (local.get $M)))))

  ;; sums (h, w, C) += each tap of rows (H, W, kernel, kernel, C) where a transposed convolution puts it, for C a multiple of 4
  (func (export "scatter") (param $sums i32) (param $rows i32) (param $H i32) (param $W i32) (param $h i32) (param $w i32)
    (param $kernel i32) (param $stride i32) (param $padding i32) (param $C i32)
    (local $row i32) (local $column i32) (local $ky i32) (local $kx i32) (local $y i32) (local $x i32) (local $to i32) (local $end i32)
    (local.set $C (i32.shl (local.get $C) (i32.const 2)))
    (loop $each_row
      (local.set $column (i32.const 0))
      (loop $each_column
        (local.set $ky (i32.const 0))
        (loop $taps
          (local.set $kx (i32.const 0))
          (local.set $y (i32.sub (i32.add (i32.mul (local.get $row) (local.get $stride)) (local.get $ky)) (local.get $padding)))
          (loop $tap
            (local.set $x (i32.sub (i32.add (i32.mul (local.get $column) (local.get $stride)) (local.get $kx)) (local.get $padding)))
            (local.set $end (i32.add (local.get $rows) (local.get $C)))
            (if (i32.and (i32.lt_u (local.get $y) (local.get $h)) (i32.lt_u (local.get $x) (local.get $w))) ;; unsigned: a negative one is large
              (then
                (local.set $to (i32.add (local.get $sums)
                  (i32.mul (i32.add (i32.mul (local.get $y) (local.get $w)) (local.get $x)) (local.get $C))))
                (loop $c
                  (v128.store (local.get $to) (f32x4.add (v128.load (local.get $to)) (v128.load (local.get $rows))))
                  (local.set $to (i32.add (local.get $to) (i32.const 16)))
                  (br_if $c (i32.lt_u (local.tee $rows (i32.add (local.get $rows) (i32.const 16))) (local.get $end))))))
            (local.set $rows (local.get $end))
            (br_if $tap (i32.lt_u (local.tee $kx (i32.add (local.get $kx) (i32.const 1))) (local.get $kernel))))
          (br_if $taps (i32.lt_u (local.tee $ky (i32.add (local.get $ky) (i32.const 1))) (local.get $kernel))))
        (br_if $each_column (i32.lt_u (local.tee $column (i32.add (local.get $column) (i32.const 1))) (local.get $W))))
      (br_if $each_row (i32.lt_u (local.tee $row (i32.add (local.get $row) (i32.const 1))) (local.get $H))))))
