"""What the log of a run prints."""

from research.train.logging import Log, format_size_losses


def test_size_losses_are_a_table_in_the_order_of_the_sizes():
    means = {"task/1x16": 2.5, "task/12x768": 0.25, "task/4x128": 1.0}
    table = format_size_losses(means | {"kl/4x128": 0.5, "after/perplexity": 9.0})
    assert table.splitlines() == [
        "mean loss    1x16   4x128  12x768",
        "task       2.5000  1.0000  0.2500",
        "kl                 0.5000",
    ]
    # Many sizes are rows
    lines = format_size_losses({f"task/{d}x8": 1.0 for d in range(9)}).splitlines()
    assert lines[:2] == ["mean loss    task", "0x8        1.0000"] and len(lines) == 10
    assert format_size_losses({"task/64": 1.0, "task/8": 2.0}).splitlines()[0] == (
        "mean loss       8      64"
    )


def test_reports_have_one_line_and_sizes_the_mean_since_the_last_evaluation(
    tmp_path, capfd
):
    row = {"loss": 0.5, "learning_rate": 4e-5, "tokens_per_second": 12_345.6}
    row |= {"padding": 0.071, "task/8": 1.0}
    log = Log(tmp_path, 100, 0)
    log.write({"step": 1} | row)
    log.write({"step": 1, "eval/dev/main_score": 1.0})
    log.show_size_losses()
    log.write({"step": 2} | row | {"task/8": 4.0})
    log.close()
    # A resumed run goes on from the last evaluation
    log = Log(tmp_path, 100, 2)
    log.write({"step": 3} | row | {"task/8": 2.0})
    log.show([{"step": 3} | row], 83.0)
    log.show_size_losses()
    log.show_size_losses()
    log.close()
    assert capfd.readouterr().err.splitlines() == [
        "mean loss       8",
        "task       1.0000",
        "step 3/100  loss 0.5000  rate 4.00e-05  12,346 tokens/s  padding 7%  "
        "01:23 left",
        "mean loss       8",
        "task       3.0000",
    ]
