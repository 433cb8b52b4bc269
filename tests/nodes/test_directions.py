"""Which tests show that an input changes the output in the direction its tooltip says: every input of every node."""

import ast
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

STRUCTURE = {
    "blur_level": "structure: test_each_blur_level_loses_detail, "
    "test_an_edit_keeps_less_of_the_shapes_at_the_highest_blur_level",
    "structure_strength": "structure: test_strength_is_how_much_of_the_depth_is_shown, "
    "test_strength_turns_a_control_network_down_and_not_its_picture, "
    "test_an_edit_leaves_the_structure_the_more_the_less_is_shown",
    "start": "structure: test_the_structure_is_shown_from_start_to_end, "
    "test_an_edit_leaves_the_structure_the_more_the_less_is_shown",
    "end": "structure: test_the_structure_is_shown_from_start_to_end, "
    "test_an_edit_leaves_the_structure_the_more_the_less_is_shown",
}
"""The sliders that two nodes share; the first three tests run for both of them."""

SHOWN = {
    "Gen1_LoadModel": {
        "model": "load: test_the_embedded_model_is_that_of_the_library, test_a_folder_of_ones_own_is_listed_and_loaded",
        "short_side": "load: test_short_side_is_the_size_that_is_worked_at",
    },
    "Gen1_LoadPublic": {
        "checkpoint": "load: test_checkpoint_is_what_draws",
        "motion": "load: test_motion_joins_the_frames_and_control_shows_the_structure, "
        "test_several_that_could_be_meant_are_listed",
        "control": "load: test_motion_joins_the_frames_and_control_shows_the_structure, test_every_choice_counts",
        "ip_adapter": "load: test_every_choice_counts, test_public_files_are_found_by_content",
        "clip_vision": "load: test_clip_vision_is_not_looked_at_without_an_ip_adapter, "
        "test_public_files_are_found_by_content, "
        "test_files_that_do_not_belong_together_are_refused_in_the_words_of_the_node",
        "vae": "load: test_every_choice_counts",
        "depth": "load: test_every_choice_counts",
        "short_side": "load: test_short_side_is_the_size_that_is_worked_at, test_public_weights_have_a_size_too",
    },
    "Gen1_LoadDepth": {"estimator": "load: test_a_depth_estimator_alone"},
    "Gen1_LoadLora": {
        "model": "load: test_strength_is_how_much_of_a_lora_is_added",
        "lora": "load: test_loras_of_both_folders_are_offered_and_loaded",
        "strength": "load: test_strength_is_how_much_of_a_lora_is_added",
    },
    "Gen1_LoadVideo": {
        "file": "video: test_a_whole_file_is_itself, test_a_silent_clip_has_no_sound",
        "start_s": "video: test_every_input_chooses_frames_as_it_says",
        "end_s": "video: test_every_input_chooses_frames_as_it_says",
        "stride": "video: test_every_input_chooses_frames_as_it_says",
        "fps": "video: test_every_input_chooses_frames_as_it_says",
        "max_size": "video: test_every_input_chooses_frames_as_it_says",
        "video": "video: test_a_part_of_a_part_is_a_part, test_a_video_in_memory_is_cut_too",
        "max_frames": "video: test_max_frames_keeps_the_beginning",
    },
    "Gen1_SaveVideo": {
        "filename_prefix": "video: test_filename_prefix_is_the_folder_and_the_beginning_of_the_name",
        "frame_rate": "video: test_higher_frame_rate_plays_faster, test_images_are_saved_with_their_rate",
        "crf": "video: test_crf_trades_quality_for_size, test_an_mp4_is_copied_without_loss",
        "images": "video: test_images_take_rate_times_and_sound_of_a_video",
        "video": "video: test_an_mp4_is_copied_without_loss, test_images_take_rate_times_and_sound_of_a_video",
        "audio": "video: test_a_sound_takes_the_place_of_the_videos_own",
    },
    "Gen1_DepthStructure": {
        "image": "structure: test_image_frames_keep_their_order",
        "depth": "structure: test_depth_is_what_the_estimator_says",
        "model": "structure: test_model_sets_the_working_size",
        **STRUCTURE,
    },
    "Gen1_StructureFromImage": {
        "image": "structure: test_a_picture_is_depth_and_bright_is_near",
        "model": "structure: test_model_sets_the_size_of_given_depth",
        "invert": "structure: test_invert_swaps_near_and_far",
        **STRUCTURE,
    },
    "Gen1_ContentFromText": {
        "encoder": "content: test_encoder_makes_the_content_of_its_own_model",
        "prompt": "content: test_prompt_says_the_look, test_words_the_model_does_not_know_are_said_on_the_node",
        "negative": "content: test_negative_takes_the_place_of_nothing; edit: test_negative_is_kept_away_from",
        "seed": "content: test_seed_draws_another_picture_of_the_same_words, "
        "test_seed_changes_nothing_where_the_words_themselves_are_read",
    },
    "Gen1_ContentFromImage": {
        "encoder": "content: test_image_gives_the_look_of_the_picture, test_prompt_goes_beside_the_picture",
        "prompt": "content: test_prompt_goes_beside_the_picture, test_what_cannot_be_read_is_refused",
        "negative": "content: test_negative_and_seed_of_a_picture",
        "seed": "content: test_negative_and_seed_of_a_picture",
        "per_frame": "content: test_per_frame_lets_each_frame_follow_its_own",
        "image": "content: test_image_gives_the_look_of_the_picture, "
        "test_several_pictures_go_together_in_an_ip_adapter",
        "clip_vision": "content: test_clip_vision_gives_what_the_picture_gives, test_clip_vision_of_the_papers_kind",
    },
    "Gen1_BlendContent": {
        "a": "content: test_weight_is_the_share_of_b",
        "b": "content: test_weight_is_the_share_of_b",
        "weight": "content: test_weight_is_the_share_of_b",
    },
    "Gen1_ScheduleContent": {
        "a": "content: test_the_look_passes_from_a_to_b",
        "b": "content: test_the_look_passes_from_a_to_b",
        "first_frame": "content: test_the_look_passes_from_a_to_b",
        "last_frame": "content: test_the_look_passes_from_a_to_b",
        "frames": "content: test_the_look_passes_from_a_to_b, test_no_frames_are_those_of_the_clip",
    },
    "Gen1_Condition": {
        "model": "sample: test_model_reads_structure_its_own_way",
        "structure": "sample: test_structure_is_what_both_conditionings_keep",
        "content": "sample: test_content_is_in_the_positive_alone, test_a_schedule_settles_on_the_clips_frames",
        "window": "sample: test_condition_divides_the_clip_for_the_cores_samplers",
        "overlap": "sample: test_condition_divides_the_clip_for_the_cores_samplers",
    },
    "Gen1_Guider": {
        "model": "sample: test_guider_samples_the_model_with_its_patches",
        "positive": "sample: test_guider_goes_to_the_positive_and_away_from_the_negative",
        "negative": "sample: test_guider_goes_to_the_positive_and_away_from_the_negative",
        "content_scale": "sample: test_guider_follows_the_content, "
        "test_below_0_every_sampler_takes_the_models_own_scale",
        "temporal_scale": "sample: test_guider_ties_frames_together, test_guider_above_one_is_smoother",
        "structure_scale": "sample: test_guider_follows_the_structure, "
        "test_below_0_every_sampler_takes_the_models_own_scale",
    },
    "Gen1_Encode": {
        "image": "sample: test_decode_gives_the_size_of_the_source, test_encode_is_that_of_the_library",
        "vae": "sample: test_vae_is_what_reads_and_draws_the_pictures",
        "model": "sample: test_model_sets_the_working_size_of_encode, test_encode_keeps_to_the_models_size",
        "mask": "sample: test_mask_of_encode_is_that_of_the_library",
    },
    "Gen1_Sampler": {
        "model": "sample: test_model_with_patched_weights_counts",
        "structure": "sample: test_structure_and_content_count",
        "content": "sample: test_structure_and_content_count, test_content_scale_follows_the_content",
        "content_scale": "sample: test_content_scale_follows_the_content, "
        "test_below_0_every_sampler_takes_the_models_own_scale",
        "temporal_scale": "sample: test_temporal_scale_ties_frames_together, test_temporal_scale_above_one_is_smoother",
        "steps": "sample: test_steps_refine",
        "strength": "sample: test_strength_is_the_way_from_the_source",
        "seed": "sample: test_seed_is_a_variation",
        "sampler": "sample: test_sampler_is_how_steps_are_taken",
        "window": "sample: test_fewer_frames_in_a_window_need_less_memory_and_move_less_as_one, "
        "test_windows_share_frames",
        "overlap": "sample: test_more_overlap_hides_seams_and_takes_longer, test_windows_share_frames",
        "source": "sample: test_strength_is_the_way_from_the_source, test_noise_mask_says_what_is_edited",
        "structure_scale": "sample: test_structure_scale_follows_the_structure, "
        "test_below_0_every_sampler_takes_the_models_own_scale",
    },
    "Gen1_Decode": {
        "latent": "sample: test_latent_is_what_is_decoded",
        "vae": "sample: test_vae_is_what_reads_and_draws_the_pictures",
        "image": "sample: test_decode_gives_the_size_of_the_source",
    },
    "Gen1_EditVideo": {
        "video": "edit: test_edit_is_that_of_the_library, test_frames_in_memory_are_edited_as_those_of_a_file",
        "prompt": "edit: test_prompt_says_how_it_looks",
        "negative": "edit: test_negative_is_kept_away_from",
        "blur_level": "edit: test_blur_level_gives_shapes_up",
        "structure_strength": "edit: test_structure_strength_is_how_much_depth_counts",
        "content_scale": "edit: test_content_scale_follows_the_content",
        "temporal_scale": "edit: test_temporal_scale_ties_frames_together",
        "steps": "edit: test_steps_refine",
        "strength": "edit: test_strength_is_the_way_from_the_source",
        "seed": "edit: test_seed_is_a_variation",
        "image": "edit: test_image_takes_the_place_of_the_prompt",
        "model": "edit: test_model_wired_in_is_the_embedded_one, test_model_with_patched_weights_counts",
        "depth": "edit: test_depth_estimator_says_what_the_shapes_are",
        "mask": "edit: test_mask_keeps_the_source_where_it_is_black",
        "structure_scale": "edit: test_structure_scale_draws_the_shapes",
    },
    "Gen1_EditMask": {
        "mask": "edit: test_mask_comes_through_as_it_is, test_every_frame_has_its_own_mask",
        "grow_px": "edit: test_mask_grows_and_shrinks",
        "feather_px": "edit: test_mask_fades_over_so_many_pixels",
        "invert": "edit: test_mask_is_inverted_before_it_grows",
        "edited": "edit: test_background_is_the_source_itself",
        "source": "edit: test_background_is_the_source_itself, test_mask_of_another_size_is_brought_to_the_source",
    },
    "Gen1_Compare": {
        "first": "edit: test_clips_stand_in_rows, test_a_picture_stands_still_beside_a_clip",
        "columns": "edit: test_clips_stand_in_rows",
        "first_label": "edit: test_labels_are_written_above",
        "second_label": "edit: test_labels_are_written_above",
        "third_label": "edit: test_labels_are_written_above",
        "fourth_label": "edit: test_labels_are_written_above",
        "second": "edit: test_clips_stand_in_rows, test_a_picture_stands_still_beside_a_clip",
        "third": "edit: test_clips_stand_in_rows",
        "fourth": "edit: test_clips_stand_in_rows",
    },
    "Gen1_Metrics": {
        "edited": "edit: test_figures_are_those_of_the_library, test_still_frames_are_consistent",
        "encoder": "edit: test_encoder_is_the_clip_that_sees_and_reads",
        "prompt": "edit: test_prompt_that_fits_scores_higher",
        "source": "edit: test_depth_error_is_of_both_clips",
        "depth": "edit: test_depth_is_the_estimator_that_looks_at_both",
    },
}
"""Node, input: the tests that show it, as "file: test, test; file: test"; a file is test_<file>_nodes.py."""


def named_in(said: str) -> list[tuple[str, str]]:
    """(file, test) of each that is named."""
    found = []
    for group in said.split("; "):
        file, tests = group.split(": ")
        found += [(file, test) for test in tests.split(", ")]
    return found


def sources(file: str) -> dict[str, str]:
    """The tests of a file and what is written in them."""
    text = (HERE / f"test_{file}_nodes.py").read_text(encoding="utf-8")
    functions = [one for one in ast.parse(text).body if isinstance(one, ast.FunctionDef)]
    return {one.name: ast.get_source_segment(text, one) or "" for one in functions if one.name.startswith("test_")}


def test_every_input_has_a_test_that_shows_its_direction(pack: Any) -> None:
    schemas = [node.GET_SCHEMA() for node in pack.nodes()]
    inputs = {schema.node_id: [one.id for one in schema.inputs] for schema in schemas}
    assert {node: sorted(shown) for node, shown in SHOWN.items()} == {node: sorted(ids) for node, ids in inputs.items()}


@pytest.mark.parametrize("file", ["load", "video", "structure", "content", "sample", "edit"])
def test_the_tests_that_are_named_are_there(file: str) -> None:
    """And can fail: each compares something, and none is switched off."""
    there = sources(file)
    named = {test for shown in SHOWN.values() for said in shown.values() for one, test in named_in(said) if one == file}
    assert named and named <= set(there)
    for test in named:
        assert any(word in there[test] for word in ("assert", "require_equal", "close(", "pytest.raises")), test
        assert "pytest.skip" not in there[test] and "xfail" not in there[test], test
